// host_sketch.cpp: the sketch on this machine. Serial is standard input and output; the flash is a file.
// usage: sketch [flash-file page-bytes [cut]]; with cut, power fails after so many bytes were programmed or erased.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define FADE_HOST 1

struct SerialStub {
  void begin(long) {}
  int available() { int c = getchar(); if (c == EOF) return 0; ungetc(c, stdin); return 1; }
  int read() { return getchar(); }
  void print(const char *s) { fputs(s, stdout); }
  void print(char c) { putchar(c); }
  void print(int n) { printf("%d", n); }
  void print(unsigned long n) { printf("%lu", n); }
  template <class T> void println(T x) { print(x); putchar('\n'); }
  void println() { putchar('\n'); }
};
static SerialStub Serial;
static unsigned long micros() { return 0; }

#include "storage.h"
static const char *path;
static uint8_t cells[1 << 16];
static fade_flash flash;
static long cut = -1;

static void save() { FILE *f = fopen(path, "wb"); if (!f || fwrite(cells, 2 * flash.page, 1, f) != 1) exit(4); fclose(f); }
static void byte_done() { if (cut >= 0 && --cut < 0) { fflush(stdout); save(); exit(3); } }
static int file_read(void *, uint32_t at, void *to, uint32_t n) { memcpy(to, cells + at, n); return 0; }
static int file_program(void *, uint32_t at, const void *from, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) { byte_done(); cells[at + i] &= static_cast<const uint8_t *>(from)[i]; }
  save();
  return 0;
}
static int file_erase(void *, uint32_t at) {
  for (uint32_t i = 0; i < flash.page; i++) { byte_done(); cells[at + i] = 0xFF; }
  save();
  return 0;
}
static const fade_flash *board_flash() { return path ? &flash : nullptr; }

#include SKETCH

int main(int argc, char **argv) {
  if (argc > 2) {
    path = argv[1];
    flash = {nullptr, static_cast<uint32_t>(atol(argv[2])), file_read, file_program, file_erase};
    if (argc > 3) cut = atol(argv[3]);
    memset(cells, 0xFF, sizeof cells);
    if (FILE *f = fopen(path, "rb")) { if (fread(cells, 1, 2 * flash.page, f) == 0) return 5; fclose(f); }
  }
  setup();
  loop();
  return 0;
}
