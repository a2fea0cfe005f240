/* host.c: contexts from standard input, forecasts to standard output, both as raw int16. */
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
    while (fread(ctx, sizeof ctx, 1, stdin) == 1) {
        liquid_forecast(&work, ctx, soh);
        if (fwrite(soh, sizeof soh, 1, stdout) != 1) return 1;
    }
    return 0;
}
