"""The notebooks as the structural tests see them."""
import ast, json, re
from conftest import ROOT

NBS = ROOT/'nbs'
CHAPTERS = sorted(NBS.glob('[0-9][0-9]_*.ipynb'))
STUDIES = sorted((NBS/'studies').glob('*.ipynb'))
ALL = [p for p in sorted(NBS.rglob('*.ipynb')) if not any(x[0] in '._' for x in p.relative_to(NBS).parts)]


def cells(path, kind=None):
    "Notebook cells with their source as one string."
    found = json.loads(path.read_text())['cells']
    for c in found: c['source'] = ''.join(c['source'])
    return [c for c in found if kind in (None, c['cell_type'])]


def code(path): return cells(path, 'code')
def directives(src): return set(re.findall(r'^#\|\s*([\w-]+)', src, flags=re.M))
def tree(src): return ast.parse(re.sub(r'^\s*[%!].*$', 'pass', src, flags=re.M)).body


def outputs_text(path):
    "All text that a notebook stores as output, pictures left out."
    for c in code(path):
        for o in c.get('outputs', []):
            if o['output_type'] == 'stream': yield c, ''.join(o['text'])
            for mime, body in o.get('data', {}).items():
                if mime.startswith('text/'): yield c, ''.join(body)
