"""Downloads from a local server with bad habits, and archives that mean harm."""
import gzip, hashlib, io, json, stat, tarfile, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np, pytest
from battnb.core import InputError
from battnb.sources import SOURCES, Limits, RemoteFile, Source, download, fetch, registry, unpack

DATA = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
FAST = dict(pause=.01, timeout=.5)


class Handler(BaseHTTPRequestHandler):
    "Behaves as the server's `habit` says; counts requests and remembers the ranges asked for."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def reply(self, code=200, body=b'', length=None, **headers):
        self.send_response(code)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        return body
    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        self.close_connection = True
        try: getattr(self, s.habit)(len(s.asked))
        except (BrokenPipeError, ConnectionResetError): pass
    def start(self): return int(self.headers['Range'][6:-1]) if self.headers.get('Range') and self.headers.get('If-Range') in ('"v1"', None) else 0
    def part(self, start, upto=None, length=None, etag='"v1"', data=DATA):
        headers = dict(ETag=etag) | (dict(Content_Range=f'bytes {start}-{len(data)-1}/{len(data)}') if start else {})
        body = self.reply(206 if start else 200, data[start:], length, **headers)
        self.wfile.write(body[:upto])
    # the habits
    def honest(self, n): self.part(self.start())
    def truncates(self, n): self.part(self.start(), upto=70_000)
    def no_range_truncates_twice(self, n): self.part(0, upto=100_000 if n < 3 else None)
    def stalls_twice(self, n):
        if n < 3:
            body = self.reply(200, DATA, ETag='"v1"') if not self.start() else self.reply(206, DATA[self.start():], ETag='"v1"', Content_Range=f'bytes {self.start()}-{len(DATA)-1}/{len(DATA)}')
            self.wfile.write(body[:50_000]); self.wfile.flush(); self.server.quit.wait(3)
        else: self.part(self.start())
    def stalls(self, n): self.reply(200, DATA); self.wfile.flush(); self.server.quit.wait(3)
    def trickles(self, n):
        self.reply(200, DATA)
        for i in range(40):
            if self.server.quit.is_set(): return
            self.wfile.write(DATA[i:i+1]); self.wfile.flush(); time.sleep(.05)
    def promises_more(self, n): self.part(self.start(), length=len(DATA) - self.start() + 1000)
    def never_gets_there(self, n):
        start = self.start()
        self.wfile.write(self.reply(206 if start else 200, DATA[start:], len(DATA) - start + 1000, ETag='"v1"', **(dict(Content_Range=f'bytes {start}-{len(DATA)+999}/{len(DATA)+1000}') if start else {})))
    def promises_less(self, n): self.part(0, length=len(DATA) - 1000, upto=len(DATA) - 1000)
    def wrong_content(self, n): self.part(0, data=DATA[::-1])
    def seam(self, n):                                        # the first beginning is damaged, everything later is right
        if n == 1: self.wfile.write(self.reply(200, bytes(len(DATA)), ETag='"v1"')[:100_000])
        else: self.part(self.start())
    def changes(self, n):                                     # another version from the second request on, known by its tag
        if n == 1: self.part(0, upto=100_000, etag='"old"', data=DATA[::-1])
        else: self.part(self.start() if self.headers.get('If-Range') == '"v1"' else 0)
    def wrong_range(self, n):
        if n == 1: self.part(0, upto=100_000)
        elif self.headers.get('Range') and n < 3: self.wfile.write(self.reply(206, DATA[5:], ETag='"v1"', Content_Range=f'bytes 5-{len(DATA)-1}/{len(DATA)}'))
        else: self.part(self.start())
    def refuses_range(self, n):
        if n == 1: self.part(0, upto=100_000)
        elif self.headers.get('Range'): self.reply(416, Content_Range=f'bytes */{len(DATA)}')
        else: self.part(0)
    def busy_twice(self, n): self.reply(503) if n < 3 else self.part(0)
    def always_busy(self, n): self.reply(503)
    def missing(self, n): self.reply(404)
    def redirects(self, n): self.part(0) if self.path == '/there' else self.reply(302, Location='/there')
    def to_a_file(self, n): self.reply(302, Location='file:///etc/passwd')
    def to_ftp(self, n): self.reply(302, Location='ftp://x/y')
    def in_circles(self, n): self.reply(302, Location='/again')
    def floods(self, n):
        self.send_response(200); self.end_headers()
        for _ in range(200): self.wfile.write(DATA)
    def chunked(self, n):
        self.send_response(200); self.send_header('Transfer-Encoding', 'chunked'); self.end_headers()
        for i in range(0, len(DATA), 50_000): self.wfile.write(b'%x\r\n%s\r\n' % (len(DATA[i:i+50_000]), DATA[i:i+50_000]))
        self.wfile.write(b'0\r\n\r\n')
    def chunked_cut(self, n):
        if n > 1: return self.chunked(n)
        self.send_response(200); self.send_header('Transfer-Encoding', 'chunked'); self.end_headers()
        self.wfile.write(b'%x\r\n%s' % (50_000, DATA[:30_000]))
    def nonsense(self, n): self.wfile.write(b'\x00\xff this is not http\r\n\r\n')
    def silent(self, n): pass


@pytest.fixture
def server():
    running = []
    def start(habit):
        s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        s.daemon_threads, s.block_on_close, s.habit, s.asked, s.quit = True, False, habit, [], threading.Event()
        threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        running.append(s)
        return s, f'http://127.0.0.1:{s.server_port}/cells.bin'
    yield start
    for s in running: s.quit.set(); s.shutdown(); s.server_close()


def leftovers(folder): return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize('habit', ['honest', 'truncates', 'no_range_truncates_twice', 'stalls_twice', 'seam', 'changes', 'wrong_range', 'refuses_range',
                                   'busy_twice', 'redirects', 'chunked', 'chunked_cut'])
def test_the_right_file_arrives_in_the_end(server, tmp_path, habit):
    s, url = server(habit)
    assert download(url, tmp_path/'cells.bin', SHA, len(DATA), **FAST).read_bytes() == DATA
    assert leftovers(tmp_path) == ['cells.bin']
    if habit == 'truncates': assert s.asked == [None] + [f'bytes={k*70_000}-' for k in range(1, 5)]     # each byte travels once
    if habit == 'honest': assert len(s.asked) == 1


@pytest.mark.parametrize('habit', ['honest', 'truncates', 'stalls_twice', 'changes', 'refuses_range'])
def test_the_right_file_arrives_without_knowing_size_and_checksum(server, tmp_path, habit):
    assert download(server(habit)[1], tmp_path/'cells.bin', **FAST).read_bytes() == DATA


@pytest.mark.parametrize('habit, says', [
    ('stalls', 'did not deliver: 0 of'), ('trickles', 'did not deliver'), ('promises_more', 'announces 301,000 bytes, but the file should have 300,000|more than the 300,000 that are allowed'),
    ('promises_less', 'announces 299,000 bytes, but the file should have 300,000'), ('wrong_content', 'is not the file it should be'), ('always_busy', 'answers 503'),
    ('missing', 'answers 404'), ('to_a_file', 'not allowed|only http and https'), ('to_ftp', 'only http and https'), ('in_circles', 'answers 302|redirect'), ('floods', 'sends more than the 300,000 bytes that are allowed'),
    ('nonsense', 'did not deliver'), ('silent', 'did not deliver')])
def test_refusals_name_the_reason_and_leave_no_file(server, tmp_path, habit, says):
    s, url = server(habit)
    (tmp_path/'cells.bin').write_bytes(b'what was there before')
    t = time.monotonic()
    with pytest.raises(InputError, match=says): download(url, tmp_path/'cells.bin', SHA, len(DATA), tries=2, **FAST)
    assert time.monotonic() - t < 8
    assert (tmp_path/'cells.bin').read_bytes() == b'what was there before'


def test_a_length_that_is_never_reached_is_an_error_without_checksum_too(server, tmp_path):
    with pytest.raises(InputError, match='300,000 of 301,000 bytes after'): download(server('never_gets_there')[1], tmp_path/'x', tries=2, **FAST)
    assert not (tmp_path/'x').exists()


def test_a_wrong_promise_is_corrected_by_the_next_answer(server, tmp_path):
    assert download(server('promises_more')[1], tmp_path/'x', tries=2, **FAST).read_bytes() == DATA     # the second answer says 300,000


def test_goes_on_in_another_process_after_a_kill(server, tmp_path):
    s, url = server('truncates')
    with pytest.raises(InputError, match='did not deliver|allowed'): download(url, tmp_path/'x', max_bytes=200_000, **FAST)     # as if stopped part of the way
    (tmp_path/'x.part').write_bytes(DATA[:123_456]); (tmp_path/'x.part.json').write_text(json.dumps(dict(url=url, version='"v1"')))
    s.asked.clear()
    assert download(url, tmp_path/'x', SHA, **FAST).read_bytes() == DATA
    assert s.asked[0] == 'bytes=123456-'


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    s, url = server('honest')
    (tmp_path/'x.part').write_bytes(DATA[::-1][:1000]); (tmp_path/'x.part.json').write_text(json.dumps(dict(url='http://elsewhere/', version='"v1"')))
    assert download(url, tmp_path/'x', **FAST).read_bytes() == DATA and s.asked == [None]


@pytest.mark.parametrize('url', ['file:///etc/passwd', 'ftp://x/y', '/etc/passwd', 'data:text/plain,hi', ''])
def test_only_the_web(url, tmp_path):
    with pytest.raises(InputError, match='only http and https'): download(url, tmp_path/'x')


def test_nobody_there(tmp_path):
    with pytest.raises(InputError, match='did not deliver'): download('http://127.0.0.1:9/x', tmp_path/'x', tries=2, **FAST)


def test_fetch_remembers_verifies_and_unpacks(server, tmp_path, capsys, monkeypatch):
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z: z.writestr('set/cells.csv', 'cycle,capacity\n1,1.1\n')
    monkeypatch.setattr(Handler, 'archive', lambda self, n: self.part(0, data=b.getvalue()), raising=False)
    s, url = server('archive')
    mine = Source('lab', 'ours', 'https://example.org', (RemoteFile('set.zip', url),), 'CC0', 'ok', 'Somebody (2024)')
    monkeypatch.setenv('BATTNB_CACHE', str(tmp_path/'cache'))
    folder = fetch(mine, **FAST)
    assert folder == tmp_path/'cache/sources/lab' and (folder/'set/set/cells.csv').read_text().startswith('cycle')
    said = capsys.readouterr().err
    assert 'CC0; cite Somebody' in said and 'no published checksum' in said
    fetch(mine, **FAST); assert len(s.asked) == 1
    (folder/'set.zip').write_bytes(b'rotten'); fetch(mine, **FAST)
    assert len(s.asked) == 2 and (folder/'set.zip').read_bytes() == b.getvalue()
    b.write(b'changed upstream'); (folder/'set.zip').unlink()
    with pytest.raises(InputError, match='is not the file it should be'): fetch(mine, **FAST)      # remembered from the first time


def test_registry_is_complete_and_honest():
    table = registry()
    assert len(table) == len(SOURCES) == table.name.nunique() >= 14
    assert table[['title', 'licence', 'citation', 'page']].notna().all().all()
    assert set(table.redistribution) <= {'ok', 'attribution', 'unclear'}
    for s in SOURCES.values():
        if not s.files:
            with pytest.raises(InputError, match='by hand from https://'): fetch(s)


# ---------------------------------------------------------------- archives
def zip_of(path, members, compress=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', compress) as z:
        for name, data in members: z.writestr(name, data)
    return path

def tar_of(path, members, mode='w:gz'):
    with tarfile.open(path, mode) as t:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data); t.addfile(info, io.BytesIO(data))
    return path

def link(kind, name='link', to='/etc'):
    info = tarfile.TarInfo(name); info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize('name', ['../evil', '/evil', 'a/../../evil', '..\\evil', 'C:\\evil', 'c:evil', '\\\\host\\evil', 'a\nb', 'a\x1b[31m', 'x'*300, '/'.join(['d']*600), '..'])
def test_names_that_reach_out(tmp_path, name):
    for archive in (zip_of(tmp_path/'a.zip', [('good', b'1'), (name, b'2')]), tar_of(tmp_path/'a.tar.gz', [('good', b'1'), (name, b'2')])):
        with pytest.raises(InputError, match='outside its folder or unprintable'): unpack(archive, tmp_path/'out')
    assert leftovers(tmp_path) == ['a.tar.gz', 'a.zip'] and not (tmp_path.parent/'evil').exists()


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_tar(tmp_path, kind):
    archive = tar_of(tmp_path/'a.tar', [(link(kind), b''), ('link/x', b'1')], 'w')
    with pytest.raises(InputError, match='is a link or device'): unpack(archive, tmp_path/'out')
    assert leftovers(tmp_path) == ['a.tar']


def test_link_and_password_in_zip(tmp_path):
    info = zipfile.ZipInfo('link'); info.external_attr = (stat.S_IFLNK | 0o777) << 16; info.create_system = 3
    with pytest.raises(InputError, match='is a link or device'): unpack(zip_of(tmp_path/'a.zip', [(info, '/etc')]), tmp_path/'out')
    data = bytearray(zip_of(tmp_path/'b.zip', [('x', b'secret')]).read_bytes())
    data[6] |= 1; data[data.index(b'PK\1\2') + 8] |= 1
    (tmp_path/'b.zip').write_bytes(data)
    with pytest.raises(InputError, match='is encrypted'): unpack(tmp_path/'b.zip', tmp_path/'out')


def test_bombs(tmp_path):
    small = Limits(bytes=30*2**20, members=50)
    zeros = bytes(40*2**20)
    with pytest.raises(InputError, match='200 times its size'): unpack(zip_of(tmp_path/'a.zip', [('z', zeros)]), tmp_path/'out')
    with pytest.raises(InputError, match='200 times its size|more than 31,457,280'): unpack(tar_of(tmp_path/'a.tar.gz', [('z', zeros)]), tmp_path/'out', small)
    with pytest.raises(InputError, match='more than 31,457,280 bytes'): unpack(zip_of(tmp_path/'b.zip', [('z', zeros)], zipfile.ZIP_STORED), tmp_path/'out', small)
    with pytest.raises(InputError, match='more than 50 files'): unpack(zip_of(tmp_path/'c.zip', [(f'{i}', b'') for i in range(60)]), tmp_path/'out', small)
    with open(tmp_path/'d.csv.gz', 'wb') as f: f.write(gzip.compress(zeros))
    with pytest.raises(InputError, match='200 times its size'): unpack(tmp_path/'d.csv.gz', tmp_path/'out')
    assert not (tmp_path/'out').exists() and not [p for p in tmp_path.iterdir() if p.name.startswith('.unpack')]


def test_a_size_that_lies_in_the_directory_is_counted(tmp_path):
    data = bytearray(zip_of(tmp_path/'a.zip', [('z', bytes(30*2**20))]).read_bytes())
    at = data.index(b'PK\1\2')
    data[at+24:at+28] = (100).to_bytes(4, 'little')                       # announces 100 bytes
    (tmp_path/'a.zip').write_bytes(data)
    try: out = unpack(tmp_path/'a.zip', tmp_path/'out')
    except InputError: assert not (tmp_path/'out').exists()
    else: assert sum(p.stat().st_size for p in out.rglob('*')) <= 100     # the library cut it there


def test_twins_and_clashes(tmp_path):
    with pytest.warns(UserWarning), pytest.raises(InputError, match='twice'): unpack(zip_of(tmp_path/'a.zip', [('x', b'1'), ('x', b'2')]), tmp_path/'out')
    with pytest.raises(InputError, match='twice'): unpack(zip_of(tmp_path/'b.zip', [('x', b'1'), ('X', b'2')]), tmp_path/'out')
    with pytest.raises(InputError, match='damaged'): unpack(zip_of(tmp_path/'c.zip', [('x', b'1'), ('x/y', b'2')]), tmp_path/'out')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_good_archives(tmp_path, mode):
    out = unpack(tar_of(tmp_path/'a.tar', [('./set/A.csv', b'1'), ('set/B.csv', b'2')], mode), tmp_path/'out')
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if p.is_file()} == {'set/A.csv': b'1', 'set/B.csv': b'2'}
    assert not [p for p in out.rglob('*') if p.stat().st_mode & 0o111 and p.is_file()]      # nothing executable
    with pytest.raises(InputError, match='exists already'): unpack(tmp_path/'a.tar', out)


@pytest.mark.parametrize('cut', [.3, .6, .95])
def test_truncated_archives(tmp_path, cut):
    noise = np.random.default_rng(1).bytes(50_000)
    for archive in (zip_of(tmp_path/'a.zip', [('x', noise), ('y', noise)]), tar_of(tmp_path/'a.tar.gz', [('x', noise), ('y', noise[::-1])])):
        archive.write_bytes(archive.read_bytes()[:int(cut*archive.stat().st_size)])
        with pytest.raises(InputError, match='damaged or no archive|no archive that is known'): unpack(archive, tmp_path/'out')
    assert leftovers(tmp_path) == ['a.tar.gz', 'a.zip']
