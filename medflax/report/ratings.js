// Keeps ratings in the browser as they are made, and saves them as a file.
const name = document.getElementById('ratings').dataset.name;
const [rater, count, download] =
  ['rater', 'count', 'download'].map(id => document.getElementById(id));
const scales = [...document.querySelectorAll('fieldset')];
const chosen = scale => scale.querySelector('input:checked');
const store = 'medflax ratings ' + name;

function ratings() {
  const scores = scales.map(chosen).filter(Boolean).map(input => [input.name, Number(input.value)]);
  return {ratings: name, rater: rater.value.trim(), scores: Object.fromEntries(scores)};
}

function told() {
  const done = scales.filter(chosen).length;
  count.textContent = `${done} of ${scales.length} answers rated`;
}

function keep() {
  told();
  try { localStorage.setItem(store, JSON.stringify(ratings())); } catch {}  // it may be forbidden
}

download.onclick = () => {
  if (!rater.value.trim()) { rater.focus(); count.textContent = 'Your name first'; return; }
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(ratings(), null, 2) + '\n']));
  link.download = `ratings-${rater.value.trim().replace(/[^\p{L}\p{N}-]+/gu, '_')}.json`;
  link.click();
};

let before = null;
try { before = JSON.parse(localStorage.getItem(store)); } catch {}
if (before) {
  rater.value = before.rater;
  for (const [answer, score] of Object.entries(before.scores)) {
    const mark = document.querySelector(`input[name="${answer}"][value="${score}"]`);
    if (mark) mark.checked = true;
  }
}
addEventListener('input', keep);
told();
