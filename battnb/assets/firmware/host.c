/* host.c: contexts from standard input, forecasts to standard output, both as raw int16.
 * With HOST_FOLLOW one value a cycle comes in; forecast and half-widths go out as soon as there are enough. */
#include <stdio.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif
#include "liquid.h"

int main(void)
{
    liquid_work work;
    int16_t ctx[LIQUID_CTX], soh[LIQUID_HOR];
#ifdef _WIN32
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
#ifdef HOST_FOLLOW
    {
        liquid_history history;
        liquid_follow follow;
        int i;
        liquid_forget(&history);
        liquid_follow_forget(&follow, 0);
        while (fread(ctx, sizeof *ctx, 1, stdin) == 1) {
            liquid_push(&history, ctx[0]);
            liquid_follow_see(&follow, ctx[0]);
            if (liquid_next(&work, &history, soh) == 0) continue;
            liquid_follow_keep(&follow, soh);
            if (fwrite(soh, sizeof soh, 1, stdout) != 1) return 1;
            for (i = 0; i < LIQUID_HOR; i++) soh[i] = (int16_t)liquid_follow_half(&follow, i);
            if (fwrite(soh, sizeof soh, 1, stdout) != 1) return 1;
        }
    }
#else
    while (fread(ctx, sizeof ctx, 1, stdin) == 1) {
        liquid_forecast(&work, ctx, soh);
        if (fwrite(soh, sizeof soh, 1, stdout) != 1) return 1;
    }
#endif
    return 0;
}
