#!/usr/bin/env python
"""Render the notebooks into a website: `make docs`, or `.venv/bin/python tools/docs.py [--out DIR] [--renderer auto|quarto|pandoc]`.

Two steps. nbdev prepares the notebooks into `_proc` (links between symbols, directives), showing exported cells as
they are written: the code is the text here. Then Quarto renders them where it is installed; where it is not, the
notebooks become Markdown, pandoc (a wheel) turns that into HTML, and `tools/site/` gives it template, style and search.
Both read the same `_quarto.yml`. Nothing is executed and nothing is downloaded.
"""
import argparse, ast, base64, html, json, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
import yaml

SITE = Path(__file__).resolve().parent/'site'
ANSI = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')


def say(msg): print(f'docs: {msg}', file=sys.stderr, flush=True)


# ---------------------------------------------------------------- what the site consists of
def site_config(root):
    "`_quarto.yml` with globs expanded, pages that do not exist left out, stray notebooks under More."
    cfg = yaml.safe_load((root/'_quarto.yml').read_text())
    seen = set()

    def page(item):
        item = {'href': item} if isinstance(item, str) else dict(item)
        if not (root/item['href']).exists():
            say(f"{item['href']} does not exist yet; left out"); return []
        seen.add(item['href'])
        return [item]

    def walk(items):
        if isinstance(items, str): items = [items]
        out = []
        for item in items:
            if isinstance(item, str) and '*' in item:
                out += [p for f in sorted(root.glob(item)) if f.relative_to(root).as_posix() not in seen for p in page(f.relative_to(root).as_posix())]
            elif isinstance(item, dict) and 'section' in item:
                sub = walk(item['contents'])
                if sub: out.append({**item, 'contents': sub})
            else: out += page(item)
        return out

    bar = cfg['website']['sidebar']
    bar['contents'] = walk(bar['contents'])
    stray = [f.relative_to(root).as_posix() for f in sorted((root/'nbs').rglob('*.ipynb'))
             if not any(p[0] in '._' for p in f.relative_to(root/'nbs').parts)]
    more = [{'href': f} for f in stray if f not in seen]
    if more: bar['contents'].append({'section': 'More', 'contents': more})
    return cfg


def check_notebooks(root, cfg):
    "Stop with the name of a notebook that cannot be read, before anything is written."
    for item in pages(cfg['website']['sidebar']['contents']):
        try: json.loads((root/item['href']).read_text())['cells']
        except (ValueError, KeyError, TypeError) as e: sys.exit(f"docs: {item['href']} is not a notebook: {e!r}")


def pages(contents):
    "The pages of a sidebar in reading order."
    for item in contents:
        if 'section' in item: yield from pages(item['contents'])
        else: yield item


def strip_prefix(x, prefix='nbs/'):
    "The same configuration as seen from inside the notebook folder, where nbdev and Quarto look."
    if isinstance(x, dict): return {k: strip_prefix(v) for k, v in x.items()}
    if isinstance(x, list): return [strip_prefix(v) for v in x]
    return x.removeprefix(prefix) if isinstance(x, str) else x


# ---------------------------------------------------------------- step 1: nbdev prepares the notebooks
def defined_names(src):
    "Functions, classes, methods and constants that an exported cell defines; methods, also those given by `@patch`, as Class.method."
    for node in ast.parse(src).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            patched = any(getattr(d, 'id', '').startswith('patch') for d in node.decorator_list)
            first = node.args.args[0].annotation if patched and isinstance(node, ast.FunctionDef) and node.args.args else None
            yield f'{first.id}.{node.name}' if isinstance(first, ast.Name) else node.name
            if isinstance(node, ast.ClassDef): yield from (f'{node.name}.{m.name}' for m in node.body if isinstance(m, ast.FunctionDef))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield from (t.id for t in getattr(node, 'targets', [getattr(node, 'target', None)]) if isinstance(t, ast.Name))


def prepare(root, cfg):
    "Fill `_proc` with processed notebooks; returns that folder."
    from nbdev import processors as P, serve
    from nbdev.doclinks import NbdevLookup
    from nbdev.frontmatter import FrontmatterProc

    class KeepIntro(FrontmatterProc):
        "As nbdev's, but what follows the title and the subtitle in the first notebook cell stays on the page."
        def cell(self, cell):
            before = cell.get('source')
            super().cell(cell)
            if before and cell.cell_type == 'markdown' and cell.get('source') is None:
                rest = re.sub(r'\A\s*#\s.*\n?(\s*>\s.*\n?)?', '', before).strip()
                if rest: cell.source = rest

    def show_export(cell):
        "Show an exported cell with its code, under a line of anchors; drop hidden and import-only ones."
        dirs = cell.directives_.keys() if cell.directives_ else set()
        if dirs & {'hide', 'default_exp'} or P._is_showdoc(cell): del cell['source']
        elif dirs & {'export', 'exporti', 'exports'}:
            body = ast.parse(cell.source).body
            if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body): del cell['source']
            else: cell.metadata['defines'] = list(defined_names(cell.source))

    def add_links(cell):
        "As nbdev's, but symbols inside an existing link stay as they are: links do not nest."
        if cell.cell_type != 'markdown' or not cell.source: return
        kept = []
        src = re.sub(r'\[[^\[\]]*\]\([^()]*\)', lambda m: kept.append(m.group(0)) or f'\x00{len(kept)-1}\x00', cell.source)
        cell.source = re.sub(r'\x00(\d+)\x00', lambda m: kept[int(m.group(1))], NbdevLookup().linkify(src))

    class Filters(P.FilterDefaults):
        def base_procs(self):
            return [KeepIntro, P.populate_language, P.strip_ansi, P.hide_line, P.filter_stream_, P.rm_header_dash,
                    show_export, P.ai_magics, P.clean_magics, P.hide_, add_links, P.strip_hidden_metadata]

    local = root/'nbs'/'_quarto.yml'
    serve.FilterDefaults = Filters
    local.write_text(yaml.safe_dump(strip_prefix(cfg), sort_keys=False, allow_unicode=True))
    try: return serve.proc_nbs('nbs', n_workers=0, force=True)
    finally: local.unlink(missing_ok=True)


def anchor_line(names, module, repo):
    "One line above an exported cell: what it defines, each name an anchor that cross-links point to; private names are anchors only."
    shown = [n for n in names if not re.search(r'(^|\.)_', n) and n.rpartition('.')[0] not in names]
    spans = ''.join(f'<span id="{n.lower()}"></span>' for n in names if n not in shown) + ' '.join(f'<code id="{n.lower()}">{n}</code>' for n in shown)
    src = f' <a class="source" href="{repo}">{module}</a>' if repo else ''
    return f'<div class="defines">{spans}{src}</div>'


def add_anchors(nb, file, root, git):
    "Put the anchor line in front of every exported cell of a processed notebook."
    module = nb_module(root/'nbs'/file)
    where = definitions(root/'battnb'/f'{module}.py') if module else {}
    cells = []
    for cell in nb['cells']:
        names = cell['metadata'].pop('defines', None)
        if names:
            line = next((where[n.split('.')[-1]] for n in names if n.split('.')[-1] in where), 1)
            link = f"{git['repo-url']}/blob/{git['repo-branch']}/battnb/{module}.py#L{line}" if 'repo-url' in git else f'source/{module}.txt' if (root/'battnb'/f'{module}.py').exists() else ''
            cells.append({'cell_type': 'markdown', 'metadata': {}, 'source': anchor_line(names, f'battnb.{module}', link), 'id': f"a-{cell.get('id', len(cells))}"})
        cells.append(cell)
    nb['cells'] = cells


def nb_module(path):
    "Name of the module that a notebook exports to, or None."
    m = re.search(r'#\|\s*default_exp\s+(\w+)', path.read_text())
    return m.group(1) if m else None


def definitions(path):
    "Line of every function and class of a module, methods included."
    if not path.exists(): return {}
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.name: n.lineno for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def api_page(root, order):
    "Markdown: every public name of every module, with the first line of its docstring, in chapter order."
    out = ['---', 'title: API', 'description: Every public name, by chapter. The link leads to its code, with arguments, shapes and units.', '---', '']
    for href in order:
        module = nb_module(root/href)
        path = root/'battnb'/f'{module}.py'
        if not module or not path.exists(): continue
        tree = ast.parse(path.read_text())
        exported = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), [])
        docs = {n.name: (ast.get_docstring(n) or '').split('\n')[0] for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        names = [n for n in docs if n in exported]
        if not names: continue
        out += [f"## [battnb.{module}]({Path(href).relative_to('nbs').as_posix()})", '', '| name | what it is |', '|---|---|']
        out += [f"| [`{n}`]({Path(href).relative_to('nbs').as_posix()}#{n.lower()}) | {docs[n].replace('|', chr(92)+'|')} |" for n in names] + ['']
    return '\n'.join(out)


# ---------------------------------------------------------------- step 2, without Quarto: notebook -> Markdown -> HTML
def directives(src):
    "The `#|` lines of a notebook cell as a dict, and the source without them."
    found = dict(re.findall(r'^#\|\s*([\w-]+):\s*(.*?)\s*$', src, flags=re.M))
    return found, re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip('\n')


def raw(block): return f'\n\n```{{=html}}\n{block}\n```\n\n'
def text(x): return ''.join(x) if isinstance(x, list) else str(x)


def output_md(o, files, name, alt):
    "One output of a notebook cell as Markdown; pictures are added to `files`."
    if o['output_type'] == 'stream':
        kind = 'output' if o.get('name') == 'stdout' else 'output stderr'
        return raw(f'<pre class="{kind}">{html.escape(ANSI.sub("", text(o["text"])))}</pre>')
    if o['output_type'] == 'error':
        return raw(f'<pre class="output error">{html.escape(ANSI.sub("", text(o.get("traceback", ""))))}</pre>')
    data, meta = o['data'], o.get('metadata', {})
    if 'text/html' in data:
        body = re.sub(r'<style scoped>.*?</style>', '', text(data['text/html']), flags=re.S).replace('border="1" ', '')
        return raw(f'<div class="html-output">{body}</div>')
    for mime, ext in (('image/svg+xml', 'svg'), ('image/png', 'png'), ('image/jpeg', 'jpg')):
        if mime not in data: continue
        body = text(data[mime])
        files[f'{name}.{ext}'] = body.encode() if ext == 'svg' else base64.b64decode(body)
        width = meta.get(mime, {}).get('width')
        return raw(f'<figure><img src="{name}.{ext}" alt="{html.escape(alt)}"{f" width={chr(34)}{width}{chr(34)}" if width else ""} loading="lazy"></figure>')
    for mime in ('text/markdown', 'text/latex'):
        if mime in data: return f'\n\n{text(data[mime])}\n\n'
    return raw(f'<pre class="output">{html.escape(ANSI.sub("", text(data.get("text/plain", ""))))}</pre>')


def cell_md(cell, files, name, alt):
    "One notebook cell as Markdown."
    src = text(cell['source'])
    if cell['cell_type'] == 'markdown': return src
    if cell['cell_type'] == 'raw': return ''
    d, src = directives(src)
    if d.get('include') == 'false': return ''
    out = []
    if d.get('echo') != 'false' and src:
        block = f'```python\n{src}\n```'
        out.append(f"<details><summary>{d.get('code-summary', 'Code')}</summary>\n\n{block}\n\n</details>" if d.get('code-fold') == 'true' else block)
    if d.get('output') != 'false':
        parts = [output_md(o, files, f'{name}-{i}', d.get('fig-alt', d.get('fig-cap', alt)).strip('"\'')) for i, o in enumerate(cell.get('outputs', []))]
        out += [p + (f"\n\n::: {{.caption}}\n{d['fig-cap'].strip(chr(34))}\n:::\n\n" if 'fig-cap' in d and '<figure>' in p else '') for p in parts]
    return '\n\n'.join(out)


def notebook_md(nb, stem):
    "A processed notebook as front matter, Markdown, and the picture files that go with it."
    front, md, files, heading = {}, [], {}, ''
    for i, cell in enumerate(nb['cells']):
        src = text(cell['source'])
        if cell['cell_type'] == 'raw' and src.startswith('---'): front.update(yaml.safe_load(src.strip().strip('-')) or {})
        if cell['cell_type'] == 'markdown':
            heads = re.findall(r'^#+\s+(.*?)\s*$', src, flags=re.M)
            heading = heads[-1] if heads else heading
        alt = f"Figure: {heading or front.get('title', stem)}"
        md.append(cell_md(cell, files, f'{stem}_files/{i:03d}', re.sub(r'[`*]', '', alt)))
    return front, '\n\n'.join(md), files


def to_html(md, template, variables):
    "Markdown through pandoc with our template; equations become MathML. Variables go in as they are, so they are escaped here."
    import pypandoc
    fmt = 'markdown+lists_without_preceding_blankline+autolink_bare_uris-blank_before_header-implicit_figures'
    args = ['--template', str(template), '--mathml', '--toc', '--toc-depth=3', '--columns=10000', '--wrap=none', '--section-divs=false',
            f'--lua-filter={SITE/"filter.lua"}']
    args += [f'--variable={k}={html.escape(str(v))}' for k, v in variables.items()]
    return pypandoc.convert_text(md, 'html5', format=fmt, extra_args=args)


def nav_html(contents, here, titles, files):
    "The sidebar; the page at hand is marked."
    out = []
    for item in contents:
        if 'section' in item:
            out.append(f"<details open><summary>{html.escape(item['section'])}</summary>{nav_html(item['contents'], here, titles, files)}</details>")
        else:
            mark = ' aria-current="page"' if item['href'] == here else ''
            out.append(f"<li><a href=\"{relative(files[item['href']], files[here])}\"{mark}>{html.escape(item.get('text') or titles[item['href']])}</a></li>")
    return '<ul>' + ''.join(o if o.startswith('<li>') else f'<li>{o}</li>' for o in out) + '</ul>'


def relative(target, page): return os.path.relpath(target, os.path.dirname(page) or '.').replace(os.sep, '/')


class Sections(HTMLParser):
    "Cuts a page into (anchor, heading, text) for the search index; menus and scripts do not count."
    def __init__(self):
        super().__init__(); self.rows = [['', '', '']]; self.skip = 0; self.head = False; self.main = False
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == 'main': self.main = True
        if tag in ('script', 'style', 'nav', 'pre', 'annotation'): self.skip += 1
        if self.main and tag in ('h1', 'h2', 'h3'): self.rows.append([a.get('id', ''), '', '']); self.head = True
        if self.main and tag == 'code' and a.get('id'): self.rows.append([a['id'], '', '']); self.head = True
    def handle_endtag(self, tag):
        if tag in ('script', 'style', 'nav', 'pre', 'annotation'): self.skip -= 1
        if tag in ('h1', 'h2', 'h3', 'code'): self.head = False
        if tag == 'main': self.main = False
    def handle_data(self, data):
        if self.main and not self.skip: self.rows[-1][1 if self.head else 2] += data


def render_pandoc(root, proc, cfg, out):
    "Every processed notebook as a page of a static site in `out`."
    web = cfg['website']; bar = web['sidebar']['contents']
    order = [p['href'] for p in pages(bar)]
    books = {h: json.loads((proc/h.removeprefix('nbs/')).read_text()) for h in order}
    for h, nb in books.items(): add_anchors(nb, h.removeprefix('nbs/'), root, web)
    parts = {h: notebook_md(nb, Path(h).stem) for h, nb in books.items()}
    bar = bar + [{'section': 'Reference', 'contents': [{'href': 'nbs/api.ipynb', 'text': 'API'}]}]
    api = api_page(root, order)
    parts['nbs/api.ipynb'] = (yaml.safe_load(api.split('---')[1]), api.split('---', 2)[2], {})
    order.append('nbs/api.ipynb')
    titles = {h: str(p[0].get('title') or Path(h).stem) for h, p in parts.items()}
    files = {h: (Path(h).relative_to('nbs').parent/(p[0].get('output-file') or f'{Path(h).stem}.html')).as_posix() for h, p in parts.items()}
    if out.exists(): shutil.rmtree(out)
    out.mkdir(parents=True)
    for f in proc.rglob('*'):       # pictures and other files that lie beside the notebooks
        if f.is_file() and f.suffix not in ('.ipynb', '.yml', '.tmp'): copy(f, out/f.relative_to(proc))
    for f in ('style.css', 'site.js'): copy(SITE/f, out/'site'/f)
    copy_sources(root, out)
    index = []
    for n, h in enumerate(order):
        front, md, pics = parts[h]
        here = files[h]
        near = {k: order[n+d] for k, d in (('prev', -1), ('next', 1)) if 0 <= n+d < len(order)}
        variables = {'pagetitle': titles[h], 'subtitle': str(front.get('description', '')), 'sitetitle': web['title'], 'home': relative(files[order[0]], here),
                     'base': relative('site', here), 'nav': nav_html(bar, h, titles, files), 'lang': 'en',
                     **{f'{k}{what}': x for k, v in near.items() for what, x in (('', relative(files[v], here)), ('title', titles[v]))}}
        if (root/h).exists():
            copy(root/h, out/h.removeprefix('nbs/'))
            variables |= {'notebook': Path(h).name} | ({'edit': f"{web['repo-url']}/blob/{web['repo-branch']}/{h}"} if 'repo-url' in web else {})
        # Menu and titles are HTML already: they go in after pandoc, which would escape them.
        page = to_html(md, SITE/'template.html', {k: v for k, v in variables.items() if k not in ('nav', 'subtitle')})
        page = page.replace('<!--nav-->', variables['nav']).replace('<!--subtitle-->', inline(variables['subtitle']))
        page = fix_links(page, h, files, web.get('site-url', ''))
        for name, body in pics.items(): write(out/Path(here).parent/name, body)
        write(out/here, page.encode())
        cut = Sections(); cut.feed(page)
        index += [[here + (f'#{i}' if i else ''), titles[h], ' '.join(head.split()), ' '.join(body.split())[:1500]] for i, head, body in cut.rows if head or body.strip()]
    write(out/'site'/'search.js', f'window.siteIndex = {json.dumps(index, ensure_ascii=False, separators=(",", ":"))};'.encode())
    write(out/'.nojekyll', b'')


def inline(md):
    "A one-line Markdown text as HTML without its paragraph."
    import pypandoc
    return re.sub(r'^<p>|</p>\s*$', '', pypandoc.convert_text(md, 'html5', format='markdown', extra_args=['--mathml', '--wrap=none']).strip()) if md else ''


def fix_links(page, href, files, site_url):
    "Links between notebooks, and nbdev's absolute ones, as relative links between pages."
    here, folder = files[href], os.path.dirname(href)
    byhtml = {f: f for f in files.values()}

    def one(m):
        url, _, frag = html.unescape(m.group(2)).partition('#')
        target = None
        if site_url and url.startswith(site_url + '/'): target = byhtml.get(url.removeprefix(site_url + '/'))
        elif url.endswith('.ipynb') and '://' not in url and 'download' not in m.group(0): target = files.get(os.path.normpath(os.path.join(folder, url)))
        if target is None: return m.group(0)
        return f'{m.group(1)}"{relative(target, here)}{"#"+frag if frag else ""}"'
    return re.sub(r'(<a\b(?![^>]*\sdownload\b)[^>]*?\bhref=)"([^"]*)"', one, page)


def copy_sources(root, out):
    "The modules as text, for the source links of a project that has no public address yet."
    for f in sorted((root/'battnb').glob('*.py')): copy(f, out/'source'/f'{f.stem}.txt')


def write(path, body): path.parent.mkdir(parents=True, exist_ok=True); path.write_bytes(body)
def copy(src, dst): dst.parent.mkdir(parents=True, exist_ok=True); shutil.copyfile(src, dst)


# ---------------------------------------------------------------- step 2, with Quarto
def render_quarto(root, proc, cfg, out):
    "The processed notebooks through `quarto render`, into `out`."
    order = [p['href'] for p in pages(cfg['website']['sidebar']['contents'])]
    for h in order:
        path = proc/h.removeprefix('nbs/')
        nb = json.loads(path.read_text())
        add_anchors(nb, h.removeprefix('nbs/'), root, cfg['website'])
        path.write_text(json.dumps(nb))
    (proc/'api.qmd').write_text(api_page(root, order))
    quarto = strip_prefix(cfg)
    quarto['project']['render'] = quarto['project']['render'] + ['api.qmd']
    quarto['website']['sidebar']['contents'].append({'section': 'Reference', 'contents': [{'href': 'api.qmd', 'text': 'API'}]})
    (proc/'_quarto.yml').write_text(yaml.safe_dump(quarto, sort_keys=False, allow_unicode=True))
    shutil.copyfile(SITE/'quarto.css', proc/'styles.css')
    subprocess.run(['quarto', 'render', '--no-execute'], cwd=proc, check=True)
    if out.exists(): shutil.rmtree(out)
    shutil.move(proc/cfg['project']['output-dir'], out)
    copy_sources(root, out)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--root', type=Path, default=Path(__file__).resolve().parent.parent, help='project folder')
    ap.add_argument('--out', type=Path, help='where the site goes (default: _docs in the project folder)')
    ap.add_argument('--renderer', choices=['auto', 'quarto', 'pandoc'], default='auto')
    a = ap.parse_args()
    root = a.root.resolve(); out = (a.out or root/'_docs').resolve()
    os.chdir(root); sys.path.insert(0, str(root))
    use_quarto = a.renderer == 'quarto' or (a.renderer == 'auto' and shutil.which('quarto') is not None)
    cfg = site_config(root)
    check_notebooks(root, cfg)
    count = len(list(pages(cfg['website']['sidebar']['contents'])))
    say(f'[1/2] nbdev prepares {count} notebooks')
    proc = root/prepare(root, cfg)
    say(f"[2/2] {'Quarto' if use_quarto else 'pandoc (Quarto is not installed, or was not asked for)'} renders them")
    try: (render_quarto if use_quarto else render_pandoc)(root, proc, cfg, out)
    finally: shutil.rmtree(proc, ignore_errors=True)
    say(f'done: {out}/index.html')


if __name__ == '__main__': main()
