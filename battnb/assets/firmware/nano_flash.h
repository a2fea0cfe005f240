// nano_flash.h: two pages at the end of the flash of an Arduino Nano 33 BLE (nRF52840), through the core's FlashIAP.
// On other boards write the same three functions, or pass 0 to fade_begin and keep nothing.
#ifndef NANO_FLASH_H
#define NANO_FLASH_H
#include "storage.h"

#if defined(ARDUINO_ARCH_MBED)
#include <FlashIAP.h>

static mbed::FlashIAP nano_iap;
static uint32_t nano_base;

static int nano_read(void *, uint32_t at, void *to, uint32_t bytes) { return nano_iap.read(to, nano_base + at, bytes); }
static int nano_program(void *, uint32_t at, const void *from, uint32_t bytes) { return nano_iap.program(from, nano_base + at, bytes); }
static int nano_erase(void *, uint32_t at) { return nano_iap.erase(nano_base + at, nano_iap.get_sector_size(nano_base + at)); }

// 0 where the flash cannot be used
static const fade_flash *board_flash() {
  static fade_flash flash = {nullptr, 0, nano_read, nano_program, nano_erase};
  if (nano_iap.init() != 0) return nullptr;
  const uint32_t end = nano_iap.get_flash_start() + nano_iap.get_flash_size();
  flash.page = nano_iap.get_sector_size(end - 1);
  nano_base = end - 2 * flash.page;
  return &flash;
}
#elif !defined(FADE_HOST)
static const fade_flash *board_flash() { return nullptr; }
#endif
#endif
