# SPDX-License-Identifier: Apache-2.0
"""`stc demo`: a camera that stands still, a cartoon, and a question about a stream, on one page."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from stc_video.cli.options import DeviceOption, OutFolderOption, ThreadsOption
from stc_video.cli.output import command_line, prepare_folder, show_verdict, text_table
from stc_video.cli.run import EXIT_CODES, encode_video
from stc_video.cli.run_settings import RunSettings
from stc_video.cli.stop import INTERRUPTED
from stc_video.report import RunRecord, headline, run_verdict, summarise, write_html, write_json
from stc_video.report.page import write_page
from stc_video.report.pictures import data_url
from stc_video.report.summary import percent
from stc_video.report.verdict import Tried, Verdict, best_verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

_COLUMNS = ("clip", "work", "tower's time", "promise")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Options of `stc demo`."""

    device: DeviceOption = "auto"
    threads: ThreadsOption = None
    out: OutFolderOption = Path("out")


class Card(NamedTuple):
    """One clip on the page: its name, its report, its first cached frame, and what came out."""

    name: str
    link: str
    picture: str
    headline: str
    verdict: Verdict
    cells: tuple[str, str, str]


def demo(settings: DemoSettings) -> int:
    """Encode a street seen by a camera that stands still, and a cartoon with cuts.

    Then ask a small model about a stream. Writes report.html, which leads to each full report.
    Exit code: 0 done, 2 bad input, 130 interrupted.
    """
    from stc_video.evaluation.world.example import answer_one
    from stc_video.evaluation.world.files import QUESTIONS, eval_command
    from stc_video.studies.still_camera import write_street
    from stc_video.video import default_clip

    console = Console(highlight=False)
    cartoon = default_clip()
    prepare_folder(settings.out)
    street = write_street(cartoon.with_name("bikes.mp4"), settings.out / "street.mkv")
    records: dict[str, RunRecord] = {}
    for name, video in {"street": street, "cartoon": cartoon}.items():
        console.print(f"{name}: {video}", style="bold", markup=False, soft_wrap=True)
        folder = settings.out / name
        prepare_folder(folder)
        run = RunSettings(
            video=str(video),
            fps=5.0,
            max_frames=40,
            device=settings.device,
            threads=settings.threads,
        )
        record = encode_video(run, command_line(), console)
        if EXIT_CODES[record.status] == INTERRUPTED:
            console.print("Stopped; the page of both clips was not written.")
            return INTERRUPTED
        write_html(record, folder / "report.html")
        write_json(record, folder / "report.json")
        records[name] = record
    console.print("A question about a stream, to a small model", style="bold")
    example = answer_one(settings.out / "world", settings.device)
    pictures = [(f"{time:.0f} s", data_url(picture)) for time, picture in example.frames]
    verdict, cards = _verdict(records), [_card(name, one) for name, one in records.items()]
    page = settings.out / "report.html"
    write_page(
        page,
        "demo.html.j2",
        styles=["page.css", "demo.css"],
        scripts=[],
        data={},
        headline="A camera that stands still, a cartoon, and a question",
        verdict=verdict,
        warnings=[],
        cards=cards,
        columns=_COLUMNS[1:],
        example=example,
        next_command=eval_command(Path("world", QUESTIONS), Path("world")),
        pictures=pictures,
    )
    console.print(text_table(_COLUMNS, [(card.name, *card.cells) for card in cards]))
    judged = "right" if example.is_right else f"wrong: {example.right}"
    console.print(f"{example.question} {example.answer} ({judged})", markup=False, soft_wrap=True)
    console.print(f"Report: [bold]{page}[/bold] (open in a browser)", soft_wrap=True)
    for card in cards:
        show_verdict(console, replace(card.verdict, text=f"{card.name}: {card.verdict.text}"))
    return 0


def _verdict(records: Mapping[str, RunRecord]) -> Verdict:
    """Judge both clips in one line."""
    tried = []
    for name, record in records.items():
        totals = summarise(record)
        tried.append(
            Tried(
                name="motion",
                where=f"on the {name}",
                work=totals.cost,
                time=totals.time_ratio,
                promised=record.promise.promised,
                measured=totals.similarity,
            )
        )
    return best_verdict(tried)


def _card(name: str, record: RunRecord) -> Card:
    totals, promise = summarise(record), record.promise.promised
    time = "not measured" if totals.time_ratio is None else percent(totals.time_ratio)
    outcome = "none"
    if promise is not None and totals.similarity is not None:
        word = "held" if totals.similarity >= promise else "missed"
        outcome = f"{promise:g}: {word}, {totals.similarity:.4f} measured"
    return Card(
        name=name,
        link=f"{name}/report.html",
        picture=_first_cached_frame(record),
        headline=headline(record, totals),
        verdict=run_verdict(record, totals),
        cells=(f"{percent(totals.cost)} of dense", f"{time} of dense", outcome),
    )


def _first_cached_frame(record: RunRecord) -> str:
    """Draw the first cached frame as the report does, tokens that were encoded anew in orange."""
    import io

    from PIL import Image

    cached = (frame for frame in record.frames if frame.kind == "cached")
    frame = next(cached, record.frames[-1])
    picture = Image.open(io.BytesIO(frame.picture)).convert("RGB")
    rows, columns = record.model.grid
    alpha = Image.frombytes(
        "L", (columns, rows), bytes(round(110 * level) for level in frame.encoded)
    ).resize(picture.size, Image.Resampling.NEAREST)
    picture.paste((255, 122, 26), mask=alpha)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
