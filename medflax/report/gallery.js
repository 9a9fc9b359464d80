// Shows the cards of the embedded JSON that match all filters, a page at a time. The address
// holds the filters: #verdict=wrong&shots=4&words=axial. Text of the data is only ever set as text.
const data = JSON.parse(document.getElementById('cards').textContent);
const [filters, sheet, count, pages] =
  ['filters', 'sheet', 'count', 'pages'].map(id => document.getElementById(id));
const PAGE = 24;
let wanted = new URLSearchParams(), matching = [], first = 0;

function make(tag, kind, ...inside) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...inside);
  return element;
}

function link(fields, text, kind) {
  const element = make('a', kind, text);
  element.href = '#' + new URLSearchParams(fields);
  return element;
}

const wide = media => media.some(index => data.pictures[index].wide) ? ' wide' : '';

function images(media) {
  return media.map(index => {
    const element = make('img');
    element.alt = '';
    element.src = 'data:image/png;base64,' + data.pictures[index].png;
    return element;
  });
}

function shot(index) {
  const {question, answer, media} = data.support[index];
  return make('div', 'shot' + wide(media), ...images(media), question + ' ', make('b', '', answer));
}

function candidates(rows) {
  const cells = rows.flatMap(([text, probability, kind]) => {
    const bar = make('i', kind);
    bar.style.width = 100 * probability + '%';
    return [make('span', kind, text), make('div', '', bar), make('b', '', probability.toFixed(3))];
  });
  return make('div', 'candidates', ...cells);
}

function show(card) {
  const [kind, told] = card.verdict;
  const rows = card.rows.flatMap(([name, text, kind]) =>
    [make('dt', '', name), make('dd', kind, text)]);
  const query = make('div', 'query');
  if (card.media.length) query.append(make('div', 'media' + wide(card.media), ...images(card.media)));
  query.append(make('dl', '', ...rows));
  if (card.candidates.length) query.append(candidates(card.candidates));
  if (card.told) query.append(make('p', 'told', card.told));
  const head = make('div', 'head', make('span', 'verdict ' + kind, told), make('span', '', card.head),
    link({id: card.id}, card.id, 'id'));
  const full = card.support.length > 1 || wide(card.media) ? ' full' : '';
  return make('article', 'sample' + full, head,
    make('div', 'reading', ...card.support.map(shot), query));
}

function told(card) {
  card.words ??= [card.id, card.head, card.told, ...card.rows.map(row => row[1]),
    ...card.support.flatMap(index => Object.values(data.support[index]).slice(0, 2))]
    .join(' ').toLowerCase();
  return card.words;
}

function filter() {
  const fields = data.facets.map(({name, values}, place) => [place, name, values])
    .filter(([, name]) => wanted.has(name))
    .map(([place, name, values]) => [place, values.indexOf(wanted.get(name))]);
  const words = (wanted.get('words') ?? '').toLowerCase().split(/\s+/).filter(Boolean);
  const id = wanted.get('id');
  matching = data.cards.filter(card => fields.every(([place, value]) => card.fields[place] === value)
    && (id === null || card.id === id) && words.every(word => told(card).includes(word)));
  first = 0;
  draw();
}

function draw() {
  const shown = matching.slice(first, first + PAGE);
  sheet.replaceChildren(...shown.map(show));
  const verdicts = data.verdicts.map((value, index) =>
    [value, matching.filter(card => card.fields[0] === index).length]).filter(([, n]) => n);
  const shares = verdicts.map(([value, n]) => `${n.toLocaleString('en')} ${value}`).join(', ');
  count.textContent = `${matching.length.toLocaleString('en')} of ` +
    `${data.cards.length.toLocaleString('en')}` + (shares && `: ${shares}`);
  const turn = (text, to, possible) => {
    const button = make('button', '', text);
    button.disabled = !possible;
    button.onclick = () => { first = to; draw(); filters.scrollIntoView(); };
    return button;
  };
  pages.replaceChildren(turn('← previous', first - PAGE, first > 0),
    matching.length ? `${first + 1} – ${first + shown.length}` : 'none',
    turn('next →', first + PAGE, first + PAGE < matching.length));
  pages.hidden = matching.length <= PAGE;
}

function put(name, value) {
  value === null ? wanted.delete(name) : wanted.set(name, value);
  history.replaceState(null, '', '#' + wanted);
  filter();
}

const selects = data.facets.map(({name, values, label}) => {
  const select = make('select', '', new Option(label, ''),
    ...values.map(value => new Option(`${name} ${value || '(empty)'}`, value)));
  select.ariaLabel = label;
  select.onchange = () =>
    put(name, select.selectedIndex ? values[select.selectedIndex - 1] : null);
  return select;
});
const words = make('input');
[words.type, words.placeholder] = ['search', 'words in questions, answers, ids …'];
words.oninput = () => put('words', words.value || null);
const all = make('button', '', 'show all');
all.onclick = () => { location.hash = ''; };
filters.replaceChildren(...selects, words, all);

function follow() {
  wanted = new URLSearchParams(location.hash.slice(1));
  data.facets.forEach(({name, values}, place) => {
    selects[place].selectedIndex = wanted.has(name) ? values.indexOf(wanted.get(name)) + 1 : 0;
  });
  words.value = wanted.get('words') ?? '';
  filter();
}
addEventListener('hashchange', () => { follow(); filters.scrollIntoView(); });
follow();
if (location.hash) filters.scrollIntoView();
