"""Nothing that comes from outside is executed: no pickle is loaded, no text is evaluated."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssljax"
FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "os.system"}


def calls(file):
    """Yield (name as written, its keywords) of every call in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_is_executed(file):
    for name, keywords in calls(file):
        assert name not in FORBIDDEN, name
        assert keywords.get("allow_pickle", "False") == "False"  # NumPy's default
        assert keywords.get("shell", "False") == "False"
        assert name != "torch.load" or keywords.get("weights_only") == "True"
        assert name != "Image.open" or "formats" in keywords  # Pillow runs Ghostscript on a PostScript file
