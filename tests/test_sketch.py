"""The sketch as a process, its log under power cuts, its parser under noise, streaming against batch."""
import shutil, subprocess
import numpy as np
import pytest
from test_deploy import fades, liquid
from battnb import deploy as D, sketch as S

pytestmark = pytest.mark.skipif(not (shutil.which('gcc') and shutil.which('g++')), reason='no gcc on this machine')

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp('sketch')
    ints = D.replace(D.quantize_liquid(liquid()), half=np.arange(96, dtype=np.int16))
    D.generate(ints, out)
    return out, S.build_sketch(out, out/'sketch'), ints

def said(built, text, *more, **kw): return S.talk(built[1], text, *more, **kw)[1:]          # without the greeting

def test_forecasts_what_the_integers_say(built):
    ints, soh = built[2], fades(1, 97)[0]
    lines = said(built, ''.join(f'{v:.6f}\n' for v in soh))
    assert lines[0] == 'held 1 of 96' and lines[94] == 'held 95 of 96'
    got = {l.split()[0]: l.split()[1:] for l in lines[-4:]}
    want = ints(soh[None].round(6))[0]
    assert np.abs(np.array(got['soh'], float) - want).max() < 1e-4
    assert np.abs(np.array(got['high'], float) - want - ints.half/2**13).max() < 1e-4
    below = next((i for i in range(96) if (want[i:] < .8).all()), None)
    assert got['cycles_to_80'] == ['>96' if below is None else str(below + 1)]

def test_reads_ah(built):
    soh = fades(1)[0]
    ah = said(built, 'nominal 1.1\r\n' + ''.join(f'{1.1*v:.6f}\r\n' for v in soh))
    assert ah[0] == 'ok, lines are Ah' and np.abs(np.array(ah[-4].split()[1:], float) - built[2](soh[None])[0]).max() < 2e-3

def test_counts_down_to_80_and_tests_itself(built):
    assert said(built, '0.5\n'*96)[-1].startswith('cycles_to_80 ') and said(built, 'test\n')[0].startswith('test differ 0 of 768 ')

@pytest.mark.parametrize('line', ['x', '0', '2', '-1', '.', '1..2', '1.2.3', '97.3', 'nan', '1e-1', '0.9 0.8', '0,9', '0.9\x00', 'nominal', 'nominal x', 'resets', '9'*40, '0'*40, '4001', '99999999999999999999'])
def test_refuses(built, line): assert said(built, f'{line}\n')[0].startswith('error:'), line

def test_blanks_around_a_line_mean_nothing(built):
    assert said(built, ' 0.9\n0.9 \n\t0.9\t \r\n  \n nominal 1.1 \n')[:3] == ['held 1 of 96', 'held 2 of 96', 'held 3 of 96'] and said(built, ' nominal 1.1 \n') == ['ok, lines are Ah']

def test_survives_noise(built):
    g = np.random.default_rng(0)
    words = [b'0.97', b'nominal ', b'reset', b'test', b'\n', b'\r', b'.', b'9', b'\x00', b'\xff', b' ', b'0.8\n', b'1.0001\n']
    for _ in range(5):
        said(built, b''.join(words[i] for i in g.integers(len(words), size=3000)))
        said(built, g.integers(0, 256, 5000, dtype=np.uint8).tobytes())

def test_history_survives_restarts_and_cuts(built, tmp_path):
    flash, soh = tmp_path/'flash', fades(1, 140)[0]
    want = said(built, ''.join(f'{v:.6f}\n' for v in soh))[-4:]
    for i in range(0, 140, 20): S.talk(built[1], ''.join(f'{v:.6f}\n' for v in soh[i:i+20]), flash, page=1284)
    assert S.talk(built[1], '', flash, page=1284)[0] == 'restored 96 of 96'
    again = S.talk(built[1], f'{soh[-1]:.6f}\n', flash, page=1284)
    assert again[-4].startswith('soh') and len(want[0].split()) == len(again[-4].split())
    flash.unlink()
    S.talk(built[1], 'nominal 2.5\n' + '2.4\n'*50, flash, page=1284, cut=1840)               # the power goes in the middle
    held = int(S.talk(built[1], '', flash, page=1284)[0].split()[1])
    assert 40 <= held < 50 and S.talk(built[1], '2.4\n', flash, page=1284)[-1] == f'held {held + 1} of 96'

def test_power_cut_at_every_third_byte(built):
    r = S.power_cuts(built[0], 230, 3)
    assert r['wrong'] == 0 and r['cuts'] > 5_000 and r['turns'] > 1_000

def test_fuzz(built):
    r = S.fuzz(built[0], 1_500, seed=3)
    assert r['edges'] > 150 and r['forecasts'] > 10_000

@pytest.mark.parametrize('make', [lambda: D.quantize_liquid(liquid(6, 20, 7, patch=4)), lambda: D.quantize_liquid(liquid(5, 16, 6, 'euler', 2, False)), lambda: D.quantize_affine(np.eye(5, 12), np.zeros(5), 'one')])
def test_streaming_equals_batch_and_steps_equal_both(make, tmp_path):
    "Every prefix of a record of any length, through the ring; and for recurrent students without a linear path, step by step."
    q = make()
    D.generate(q, tmp_path)
    (tmp_path/'stream.c').write_text("""#include <stdio.h>
#include "liquid.h"
int main(void) {
    liquid_history h; liquid_work w; int16_t x, soh[LIQUID_HOR];
    liquid_forget(&h);
    while (fread(&x, sizeof x, 1, stdin) == 1) {
        liquid_push(&h, x);
        if (liquid_next(&w, &h, soh) && fwrite(soh, sizeof soh, 1, stdout) != 1) return 1;
#if LIQUID_CELL && !defined(LIQUID_SKIP)
        if (h.held == LIQUID_CTX) { /* the same by hand, against the newest value */
            int i, j; int16_t again[LIQUID_HOR], d[LIQUID_PATCH];
            liquid_reset(&w);
            for (i = 0; i < LIQUID_CTX; i += LIQUID_PATCH) {
                for (j = 0; j < LIQUID_PATCH; j++) { const int v = h.ring[(h.at + i + j) % LIQUID_CTX] - x; d[j] = (int16_t)(v < -LIQUID_CLIP ? -LIQUID_CLIP : v > LIQUID_CLIP ? LIQUID_CLIP : v); }
                liquid_step(&w, d);
            }
            liquid_now(&w, x, again);
            for (i = 0; i < LIQUID_HOR; i++) if (again[i] != soh[i]) return 2;
        }
#endif
    }
    return 0;
}
""")
    subprocess.run(['gcc', '-std=c99', '-O1', '-fsanitize=undefined', '-fno-sanitize-recover=all', tmp_path/'stream.c', tmp_path/'liquid.c', '-o', tmp_path/'stream'], check=True)
    x = np.random.default_rng(0).choice([-32768, 0, 14000, 15000, 16384, 32767], 90).astype('<i2')
    out = subprocess.run([tmp_path/'stream'], input=x.tobytes(), capture_output=True, check=True).stdout
    got = np.frombuffer(out, '<i2').reshape(-1, q.hor)
    assert (got == q.forecast(np.lib.stride_tricks.sliding_window_view(x, q.ctx))).all()


# ---- the board's own toolchain --------------------------------------------------------------------------------------------------

ARDUINO = """#pragma once
#include <stddef.h>
#include <stdint.h>
struct Print { // every overload that the Arduino API declares for these: an ambiguous call does not compile
  size_t print(const char *), print(char), print(unsigned char, int = 10), print(int, int = 10), print(unsigned int, int = 10), print(long, int = 10),
      print(unsigned long, int = 10), print(long long, int = 10), print(unsigned long long, int = 10), print(double, int = 2);
  size_t println(const char *), println(char), println(unsigned char, int = 10), println(int, int = 10), println(unsigned int, int = 10), println(long, int = 10),
      println(unsigned long, int = 10), println(long long, int = 10), println(unsigned long long, int = 10), println(double, int = 2), println();
};
struct Serial_ : Print { void begin(unsigned long); int available(); int read(); };
extern Serial_ Serial;
unsigned long micros();
void setup();
void loop();
"""
FLASH_IAP = """#pragma once
#include <stdint.h>
namespace mbed {
class FlashIAP {
public:
  FlashIAP(); ~FlashIAP();
  int init(); int deinit();
  int read(void *buffer, uint32_t addr, uint32_t size);
  int program(const void *buffer, uint32_t addr, uint32_t size);
  int erase(uint32_t addr, uint32_t size);
  uint32_t get_sector_size(uint32_t addr) const; uint32_t get_flash_start() const; uint32_t get_flash_size() const; uint32_t get_page_size() const;
};
}
"""

@pytest.mark.skipif(not shutil.which('arm-none-eabi-g++'), reason='no arm-none-eabi-g++')
@pytest.mark.parametrize('defines', [['-DARDUINO_ARCH_MBED'], []], ids=['with FlashIAP', 'another core'])
def test_compiles_for_the_board_against_declarations(built, tmp_path, defines):
    "The real core is in no package registry; these headers declare what its documentation and sources declare, so names, argument orders and overloads are checked."
    (tmp_path/'Arduino.h').write_text(ARDUINO)
    (tmp_path/'FlashIAP.h').write_text(FLASH_IAP)
    ino = next(built[0].glob('*/*.ino'))
    cc = 'arm-none-eabi-g++ -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -O2 -c -x c++ -std=gnu++14 -fno-exceptions -fno-rtti'.split()
    for source, more in ((ino, ['-include', 'Arduino.h']), (ino.parent/'liquid.c', [])):    # the IDE puts Arduino.h before a sketch
        done = subprocess.run([*cc, *D.WARNINGS, *defines, *more, '-I', tmp_path, '-I', ino.parent, source, '-o', tmp_path/'out.o'], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

@pytest.mark.skipif(not shutil.which('arduino-cli'), reason='arduino-cli and its core are not in the package registries')
def test_compiles_with_the_real_core(built):
    "With arduino-cli and the core arduino:mbed_nano installed, the folder compiles as it is."
    cores = subprocess.run(['arduino-cli', 'core', 'list'], capture_output=True, text=True).stdout
    if 'arduino:mbed_nano' not in cores: pytest.skip('core arduino:mbed_nano is not installed')
    done = subprocess.run(['arduino-cli', 'compile', '-b', 'arduino:mbed_nano:nano33ble', next(built[0].glob('*/*.ino')).parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

def test_the_band_of_the_sketch_follows_and_its_count_survives(built, tmp_path):
    g, flash = np.random.default_rng(5), tmp_path/'flash'
    soh = np.clip(fades(1, 300)[0] + np.where(np.arange(300) > 96, g.normal(0, .02, 300), 0), .2, 1.5).round(6)
    raw = np.minimum((soh*2**14 + .5).astype(int), 32767).astype(np.int16)
    want = D.follow_record(built[2], raw)[-1]
    lines = S.talk(built[1], ''.join(f'{v:.6f}\n' for v in soh), flash)
    got = {l.split()[0]: np.array(l.split()[1:], float) for l in lines[-4:-1]}
    assert np.abs(got['high'] - (want[0] + want[1])/2**13).max() < 1e-4 and np.abs(got['low'] - (want[0] - want[1])/2**13).max() < 1e-4
    assert want[1][-1] > 1.5*built[2].half[-1]                                              # wider than calibrated, for so noisy a cell
    again = S.talk(built[1], f'{soh[-1]:.6f}\n', flash)                                     # after a restart the factor is still there
    high, mid = (np.array(next(l for l in again if l.startswith(n)).split()[1:], float) for n in ('high', 'soh'))
    assert (high - mid)[-1] > 1.5*built[2].half[-1]/2**13
