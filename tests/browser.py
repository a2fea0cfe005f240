"""A headless Chromium that tests can ask questions: one process, spoken to over its own debugging protocol."""
import base64, itertools, json, os, shutil, subprocess, tempfile, time
from pathlib import Path
import websocket        # websocket-client, which comes with Jupyter

FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update '
         '--disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*').split()
SIZES = {'desktop': (1280, 900), 'phone': (390, 844)}
MAC = '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome'


def find():
    "Path of a Chromium or Chrome on this machine, or None."
    return next((p for n in ('chromium', 'chromium-browser', 'google-chrome', MAC) if (p := shutil.which(n))), None)


class Browser:
    "with Browser() as b: b.open('file:///…', 'phone'); b.eval('document.title'); b.errors"
    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix='browser')
        self.proc = subprocess.Popen([find(), *FLAGS, f'--user-data-dir={self.dir}', 'about:blank'],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'HOME': self.dir})
        port = Path(self.dir)/'DevToolsActivePort'
        for _ in range(600):
            if port.exists() and len(port.read_text().split()) == 2: break
            time.sleep(.1)
        number, path = port.read_text().split()
        self.ws = websocket.create_connection(f'ws://127.0.0.1:{number}{path}', timeout=60)
        self.ids, self.session, self.events, self.errors = itertools.count(1), None, [], []
        page = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=page, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log'): self.call(f'{domain}.enable')
        return self

    def __exit__(self, *_):
        self.ws.close(); self.proc.terminate()
        try: self.proc.wait(10)
        except subprocess.TimeoutExpired: self.proc.kill(); self.proc.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, method, **params):
        "Send a command and wait for its answer; what the page reports meanwhile is noted."
        n = next(self.ids)
        self.ws.send(json.dumps({'id': n, 'method': method, 'params': params, **({'sessionId': self.session} if self.session else {})}))
        while True:
            msg = json.loads(self.ws.recv())
            if msg.get('id') == n:
                if 'error' in msg: raise RuntimeError(f"{method}: {msg['error']}")
                return msg['result']
            self.note(msg)

    def note(self, msg):
        kind, p = msg.get('method'), msg.get('params', {})
        self.events.append(kind)
        if kind == 'Runtime.exceptionThrown':
            d = p['exceptionDetails']; self.errors.append(d.get('exception', {}).get('description', d['text']))
        if kind == 'Runtime.consoleAPICalled' and p['type'] == 'error': self.errors.append(str([a.get('value', a.get('description')) for a in p['args']]))
        if kind == 'Log.entryAdded' and p['entry']['level'] == 'error': self.errors.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")

    def open(self, url, size='desktop', dark=False):
        "Load a page at a width; `errors` then holds what went wrong on it."
        w, h = SIZES[size]
        self.call('Emulation.setDeviceMetricsOverride', width=w, height=h, deviceScaleFactor=1, mobile=size == 'phone')
        self.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])
        self.call('Page.navigate', url='about:blank'); self.wait()      # so that a new anchor on the same page loads it again
        self.errors.clear()
        self.call('Page.navigate', url=url); self.wait()
        self.eval("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode().catch(() => 0) }))")

    def wait(self):
        while 'Page.loadEventFired' not in self.events: self.note(json.loads(self.ws.recv()))
        self.events.clear()

    def eval(self, js):
        "Value of a JavaScript expression on the page; promises are awaited."
        r = self.call('Runtime.evaluate', expression=js, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in r: raise RuntimeError(r['exceptionDetails']['exception'].get('description'))
        return r['result'].get('value')

    def screenshot(self, path, full=False):
        path = Path(path); path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png', captureBeyondViewport=full)['data']))
