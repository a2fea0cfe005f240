/* fuzz.c: a small coverage-guided fuzzer for fuzz_target.c. usage: fuzz RUNS SEED
   Build the target with -fsanitize-coverage=trace-pc, this file without. Prints runs, edges, inputs kept, forecasts. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST 4096
#define KEEP 2048

void fuzz_one(const uint8_t *data, size_t n);
void __sanitizer_cov_trace_pc(void);
extern uint64_t fuzz_forecasts;

static uint8_t seen[1 << 16], now[1 << 16], *kept[KEEP];
static size_t length[KEEP], n_kept;
static uintptr_t last;
static uint64_t state;

void __sanitizer_cov_trace_pc(void)
{
    const uintptr_t here = (uintptr_t)__builtin_return_address(0);
    now[(here ^ (last << 1)) & 0xFFFFu] = 1;
    last = here;
}

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void keep(const uint8_t *data, size_t n)
{
    if (n_kept == KEEP) return;
    kept[n_kept] = malloc(n + 1);
    memcpy(kept[n_kept], data, n);
    length[n_kept++] = n;
}

static size_t mutate(uint8_t *x, size_t n)
{
    static const char *const words[] = {"nominal ", "reset\n", "test\n", "?\n", "\n", "\r\n", "0.97\n", "1.1", ".", "4000", "4001", "0.000001\n", "1.999999\n", "99999999999",
                                        "nominal 0\n", "nominal 1.1\n", "\n\n", "0.8\n0.8\n0.8\n0.8\n", "2\n"};
    int times = 1 + (int)draw(6);
    while (times-- > 0) {
        const size_t at = n > 1 ? 1 + draw((uint32_t)(n - 1)) : 0;
        const uint32_t how = draw(7);
        if (how == 0 && n > 1) x[at] = (uint8_t)draw(256);
        else if (how == 1 && n > 1) x[at] = (uint8_t)(x[at] ^ (1u << draw(8)));
        else if (how == 2 && n > 2) { memmove(x + at, x + at + 1, n - at - 1); n--; }
        else if (how == 3) { /* a word */
            const char *w = words[draw((uint32_t)(sizeof words / sizeof *words))];
            const size_t m = strlen(w);
            if (n + m <= LONGEST) { memmove(x + at + m, x + at, n - at); memcpy(x + at, w, m); n += m; }
        } else if (how == 4 && n > 2) { /* a stretch again */
            size_t m = 1 + draw((uint32_t)(n - at));
            if (n + m <= LONGEST) { memmove(x + at + m, x + at, n - at); n += m; }
        } else if (how == 5 && n_kept > 0) { /* the tail of another */
            const size_t other = draw((uint32_t)n_kept), from = draw((uint32_t)length[other] + 1u), m = length[other] - from;
            if (at + m <= LONGEST) { memcpy(x + at, kept[other] + from, m); n = at + m; }
        } else if (how == 6 && n > 0) x[0] = (uint8_t)"FHSS"[draw(4)];
    }
    return n > 0 ? n : 1;
}

int main(int argc, char **argv)
{
    const long runs = argc > 1 ? atol(argv[1]) : 10000;
    static uint8_t x[LONGEST + 64];
    size_t n, i, edges = 0;
    long run, bytes = 0;
    state = 88172645463325252ull + (uint64_t)(argc > 2 ? atol(argv[2]) : 0);
    keep((const uint8_t *)"S0.97\nnominal 1.1\n1.05\nreset\n?\ntest\n", 38);
    for (n = 1, x[0] = 'S'; n < 1200; n += 5) memcpy(x + n, "0.91\n", 5);
    keep(x, n);
    for (run = 0; run < runs; run++) {
        const size_t from = draw((uint32_t)n_kept);
        int fresh = 0;
        n = length[from];
        memcpy(x, kept[from], n);
        if (run >= 2) n = mutate(x, n);
        memset(now, 0, sizeof now);
        last = 0;
        fuzz_one(x, n);
        bytes += (long)n;
        for (i = 0; i < sizeof now; i++) {
            if (now[i] != 0 && seen[i] == 0) {
                seen[i] = 1;
                edges++;
                fresh = 1;
            }
        }
        if (fresh) keep(x, n);
    }
    printf("runs %ld\nbytes %ld\nedges %lu\nkept %lu\nforecasts %lu\n", run, bytes, (unsigned long)edges, (unsigned long)n_kept, (unsigned long)fuzz_forecasts);
    return 0;
}
