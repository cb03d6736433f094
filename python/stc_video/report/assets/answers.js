"use strict";
// The frames that answers were given from: pictures of the viewer, which they lead to.
(() => {
  for (const button of document.querySelectorAll(".thumbnail")) {
    const index = Number(button.dataset.frame), source = stc.frames[index].picture;
    if (source) button.querySelector("img").src = source;
    button.addEventListener("click", () => {
      stc.go(index);
      document.getElementById("picture").scrollIntoView({ block: "center" });
    });
  }
})();
