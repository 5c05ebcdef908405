"""The corpus of installed modules: big enough, reproducible in its parts, split by package."""

import json

from transpooler.launch.demo.python_corpus import Module, cut_docstring, cut_parts, extract_summary, write_python_corpus


def test_docstring_lines_are_cut_and_nothing_else():
    assert cut_docstring('# x\n"""One.\n\nTwo.\n"""\nimport os\n') == ("# x\nimport os\n", "One.\n\nTwo.")
    assert cut_docstring('import os\n"""No."""\n') is None
    assert extract_summary("word " * 14) is None
    assert extract_summary("word " * 401) is None
    assert extract_summary("word " * 20 + "\n>>> 1 + 1\n2") == ("word " * 20).strip()
    assert extract_summary("word " * 20 + "\n\n  :copyright: 2006 somebody") == ("word " * 20).strip()


def test_documented_parts_of_a_module_are_pairs_without_their_docstring():
    documentation = " ".join(f"word{number}" for number in range(20))
    body = "\n".join(f"    value_{number} = compute({number})  # step" for number in range(40))
    source = f'# pkg/a.py\nimport os\n\ndef long():\n    """{documentation}"""\n{body}\n\ndef short():\n    pass\n'
    (part,) = cut_parts(Module("pkg/a.py", "pkg", False, source, source, None))
    assert part == {
        "article": f"# pkg/a.py long\ndef long():\n{body}",
        "abstract": documentation,
        "id": "pkg/a.py:long",
    }
    assert cut_parts(Module("pkg/b.py", "pkg", False, "def (", "def (", None)) == []


def test_counts_and_split(tmp_path):
    counts = write_python_corpus(tmp_path)
    assert counts["standard_library_pairs"] >= 100
    assert counts["pairs"] >= 250
    splits = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "validation", "test", "pretrain")
    }
    packages = {split: {r["id"].split("/")[0].removesuffix(".py") for r in rows} for split, rows in splits.items()}
    assert min(len(splits["validation"]), len(splits["test"])) >= 20
    assert not packages["test"] & (packages["train"] | packages["pretrain"] | packages["validation"])
    assert not packages["validation"] & (packages["train"] | packages["pretrain"])
    assert any(":" in record["id"] for record in splits["train"])
    for record in splits["test"]:
        assert record["article"].startswith(f"# {record['id']}\n")
        assert len(record["article"].split()) >= 1000
        assert record["abstract"][:200] not in record["article"]
