// Menu, theme, copy buttons and search. No dependency; works from file:// too.
const $ = (s, e = document) => e.querySelector(s), root = document.documentElement

$('#menu').onclick = () => $('#menu').setAttribute('aria-expanded', document.body.classList.toggle('menu-open'))
const here = $('#sidebar [aria-current]')
if (here) $('#sidebar').scrollTop = here.offsetTop - 200

$('#theme').onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches
  root.dataset.theme = dark ? 'light' : 'dark'
  try { localStorage.setItem('theme', root.dataset.theme) } catch (e) {}
}

for (const block of document.querySelectorAll('div.sourceCode')) {
  const b = document.createElement('button')
  b.className = 'copy'; b.textContent = 'Copy'; b.setAttribute('aria-label', 'Copy this code')
  b.onclick = async () => {
    await navigator.clipboard.writeText($('pre', block).innerText)
    b.textContent = 'Copied'; setTimeout(() => b.textContent = 'Copy', 1200)
  }
  block.append(b)
}

// Search: the index is a script of its own, fetched at the first use.
const box = $('#search'), hits = $('#hits')
const load = () => window.siteIndex ? Promise.resolve() : new Promise(ok => {
  const s = document.createElement('script'); s.src = siteBase + '/search.js'; s.onload = ok; document.head.append(s)
})
const score = ([, title, head, text], words) => {
  let sum = 0
  for (const w of words) {
    const h = head.toLowerCase(), t = title.toLowerCase(), at = text.toLowerCase().indexOf(w)
    const s = (h === w ? 60 : h.startsWith(w) ? 30 : h.includes(w) ? 15 : 0) + (t.includes(w) ? 8 : 0) + (at >= 0 ? 3 : 0)
    if (!s) return 0
    sum += s
  }
  return sum
}
const snippet = (text, w) => { const i = Math.max(0, text.toLowerCase().indexOf(w) - 40); return (i ? '…' : '') + text.slice(i, i + 120) }
async function search() {
  await load()
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean)
  const found = words.length ? siteIndex.map(r => [score(r, words), r]).filter(r => r[0]).sort((a, b) => b[0] - a[0]).slice(0, 12) : []
  hits.replaceChildren(...found.map(([, [url, title, head, text]]) => {
    const a = document.createElement('a'); a.href = siteBase + '/../' + url
    for (const [tag, s] of [['b', head && head !== title ? `${head} · ${title}` : title], ['span', snippet(text, words[0])]]) {
      const e = document.createElement(tag); e.textContent = s; a.append(e)
    }
    return a
  }))
  if (words.length && !found.length) hits.textContent = 'Nothing found'
  hits.hidden = !words.length
}
box.oninput = search
box.onkeydown = e => {
  if (e.key === 'Enter' && $('a', hits)) location.href = $('a', hits).href
  if (e.key === 'Escape') { box.value = ''; hits.hidden = true; box.blur() }
  if (e.key === 'ArrowDown' && $('a', hits)) { e.preventDefault(); $('a', hits).focus() }
}
document.addEventListener('keydown', e => { if (e.key === '/' && !/INPUT|TEXTAREA/.test(e.target.tagName)) { e.preventDefault(); box.focus() } })
document.addEventListener('click', e => { if (!e.target.closest('.search')) hits.hidden = true })
