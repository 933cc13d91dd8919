# A task for the agent `shell`, which runs it with bash -eu in the work tree of examples/sample.
# It finds the failing test, repairs the defect behind it, and proves the repair.

tests() { PYTHONPATH=src python3 -B -m unittest discover -s tests "$@"; }

echo "1. Which test fails?"
if tests 2>before.txt; then
    echo "None does: there is nothing to repair."
    exit 0
fi
grep -E '^(FAIL|ERROR|AssertionError)' before.txt
rm before.txt

echo "2. top() leaves the order of equally frequent words to chance; sort by count, then by word."
python3 - <<'PYTHON'
from pathlib import Path

file = Path("src/wordtally/count.py")
text = file.read_text()
before = "return counts.most_common(n)"
after = "return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]"
assert text.count(before) == 1, "the code is not what this task was written for"
file.write_text(text.replace(before, after))
PYTHON
git diff --stat

echo "3. All tests again:"
tests -v
git add -A
git commit -q -m "List equally frequent words in alphabetical order"
echo "Done: $(git log -1 --format='%h %s')"
