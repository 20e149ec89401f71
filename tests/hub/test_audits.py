"""What an audit says is on the card, in the record and in a Space; its images stay on the machine."""

import logging

import pytest
from PIL import Image

from starft_hf.hub.audits import take_audit, weights_digest
from starft_hf.hub.publishable import publishable
from starft_hf.hub.record import RunRecord
from starft_hf.hub.space import SpaceSettings, audits_as_html
from starft_hf.report.audit import AuditResult, ExplainedMistake, Forgotten, GroupAudit, Measured, SaliencyMap
from starft_hf.spuriosity.correlates import Correlates
from tests.support.resumed_run import make_trainer


def group(after, before):
    return GroupAudit(50, *(Measured(accuracy, (0.1, 0.9), 0.1) for accuracy in (after, before)))


def audited(folder, score=0.31):
    one = SaliencyMap("truck", 0.9, [[1.0, -0.5], [0.25, 0.0]])
    return AuditResult(
        model="run",
        start="start",
        class_names=["<b>owl", "truck"],
        images=1200,
        rows=[0],
        grouped_by="classes",
        average=group(0.8, 0.7),
        groups={"<b>owl": group(0.4, 0.6), "truck": group(0.9, 0.8)},
        worst_group="<b>owl",
        worst_interval=(0.25, 0.55),
        forgotten=Forgotten(0.1, 0.2, 0.125, {"birds": {"before": 0.75, "after": 0.5}}),
        sensitivity=None,
        correlates=Correlates((), ("<b>owl",), images=1, words=0, properties=8),
        score=score,
        weights=weights_digest(folder),
        mistakes=[ExplainedMistake(0, "<b>owl", "truck", one, one)],
        mistake_images={0: Image.new("RGB", (40, 30), (10, 200, 30))},
    )


@pytest.fixture
def folder(tmp_path):
    """A run of one step, with text of its owner around the generated part of the card."""
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = tmp_path / "output" / "README.md"
    card.write_text(card.read_text("utf-8") + "\nMy own words.\n", "utf-8")
    return tmp_path / "output"


def test_an_audit_is_on_the_card_and_in_the_record_as_long_as_the_weights_are_those(folder, caplog):
    plain = (folder / "README.md").read_text("utf-8")
    take_audit(folder)
    assert (folder / "README.md").read_text("utf-8") == plain
    audited(folder).save(folder / "audit")
    take_audit(folder)
    card = (folder / "README.md").read_text("utf-8")
    for line in ("### Audit", "Score 0.31", "1,200 images", "40.0% in the worst group", "12.5% of the answers"):
        assert line in card
    assert "- The accuracy on birds is 50.0%; it was 75.0% before fine-tuning." in card
    assert card.index("### Audit") < card.index("## How to use")
    assert card.endswith("\nMy own words.\n")
    assert "<b>" not in card
    found = RunRecord.load(folder).audit
    assert (found["score"], found["worst_group"]["before"]) == (0.31, 0.6)
    take_audit(folder)
    assert (folder / "README.md").read_text("utf-8") == card
    # Another audit of the same weights replaces it.
    (folder / "audit" / "audit.json").write_text((folder / "audit" / "audit.json").read_text().replace("0.31", "0.52"))
    take_audit(folder)
    assert (folder / "README.md").read_text("utf-8").count("### Audit") == 1
    assert "Score 0.52" in (folder / "README.md").read_text("utf-8")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with caplog.at_level(logging.WARNING):
        take_audit(folder)
    assert "of other weights" in caplog.text
    assert RunRecord.load(folder).audit is None
    assert "### Audit" not in (folder / "README.md").read_text("utf-8")
    for content in ("{}", "[]", "no JSON"):
        (folder / "audit" / "audit.json").write_text(content)
        take_audit(folder)
        assert "### Audit" not in (folder / "README.md").read_text("utf-8")


def test_a_card_whose_generated_part_was_edited_is_left_alone(folder):
    card = folder / "README.md"
    card.write_text(card.read_text("utf-8").replace("## Results", "## My results"), "utf-8")
    edited = card.read_text("utf-8")
    audited(folder).save(folder / "audit")
    take_audit(folder)
    assert card.read_text("utf-8") == edited


def test_images_of_an_audit_are_on_its_page_only_and_published_only_if_named(folder):
    audited(folder).save(folder / "audit")
    take_audit(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    holders = {path.relative_to(folder).as_posix() for path in files if b"data:image" in path.read_bytes()}
    assert holders == {"audit/audit.html"}
    chosen, others = publishable(folder)
    assert not any(name.startswith("audit/") for name in chosen)
    assert "audit/audit.html" in others
    assert "audit/audit.html" in publishable(folder, ["audit/*"])[0]


def test_a_space_shows_the_audits_that_its_models_have(folder, tmp_path):
    settings = SpaceSettings({"<i>mine": str(folder), "other": str(tmp_path)}, ["owl"])
    assert audits_as_html(settings, tmp_path) == ""
    audited(folder).save(folder / "audit")
    take_audit(folder)
    shown = audits_as_html(settings, tmp_path)
    assert "Score 0.31" in shown
    assert "&lt;i&gt;mine" in shown
    assert "&lt;b&gt;owl" in shown
    assert "other" not in shown.split("</p>")[1]
