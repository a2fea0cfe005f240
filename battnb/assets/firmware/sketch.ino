// Battery forecast on a serial line, 115200 baud. One line a cycle: SOH as a fraction (0.9731), or Ah after "nominal 1.1".
// Once enough cycles are held, every further one is answered with a forecast. "?" lists the commands.
// History and nominal capacity are kept in flash and come back after a restart.
#include "liquid.h"
#include "protocol.h"
#include "nano_flash.h"
#include "vectors.h"

static fade_t fade;

static void row(const char *name, int sign) {
  char text[10];
  Serial.print(name);
  for (int i = 0; i < LIQUID_HOR; i++) {
#ifdef LIQUID_HALF
    fade_text(fade.soh[i] + sign * liquid_follow_half(&fade.follow, i), text);
#else
    (void)sign;
    fade_text(fade.soh[i], text);
#endif
    Serial.print(' ');
    Serial.print(text);
  }
  Serial.println();
}

static void self_test() {
  static liquid_work work;
  static int16_t soh[LIQUID_HOR];
  int differ = 0;
  for (int n = 0; n < LIQUID_VECTORS; n++) {
    liquid_forecast(&work, liquid_vector_ctx + n * LIQUID_CTX, soh);
    for (int i = 0; i < LIQUID_HOR; i++) differ += soh[i] != liquid_vector_soh[n * LIQUID_HOR + i];
  }
  const unsigned long start = micros();
  liquid_forecast(&work, liquid_vector_ctx, soh);
  const unsigned long took = micros() - start;
  Serial.print("test differ ");
  Serial.print(differ);
  Serial.print(" of ");
  Serial.print(LIQUID_VECTORS * LIQUID_HOR);
  Serial.print(" microseconds ");
  Serial.println(took);
}

static void answer(fade_event event) {
  switch (event) {
    case FADE_WAIT: break;
    case FADE_STORED:
      Serial.print("held ");
      Serial.print(fade.history.held);
      Serial.print(" of ");
      Serial.println(LIQUID_CTX);
      break;
    case FADE_FORECAST: {
      const uint16_t below = liquid_crossing(fade.soh, 6554);  // 0.8 at 2^-13
      row("soh", 0);
#ifdef LIQUID_HALF
      row("low", -1);
      row("high", 1);
#endif
      Serial.print("cycles_to_80 ");
      if (below == 0) Serial.print('>');
      Serial.println(below == 0 ? LIQUID_HOR : below);
      break;
    }
    case FADE_NOMINAL: Serial.println(fade.nominal_uah == 0 ? "ok, lines are SOH" : "ok, lines are Ah"); break;
    case FADE_RESET: Serial.println("ok, history cleared"); break;
    case FADE_TEST: self_test(); break;
    case FADE_HELP: Serial.println("a number: one cycle | nominal AH: lines are Ah (0: SOH) | reset | test | ?"); break;
    default: Serial.println("error: a line is a number with 0 < SOH < 2, or a command; send ?"); break;
  }
}

void setup() {
  Serial.begin(115200);
  const fade_flash *flash = board_flash();
  fade_begin(&fade, flash);
  Serial.print(flash ? "restored " : "nothing is kept here; held ");
  Serial.print(fade.history.held);
  Serial.print(" of ");
  Serial.println(LIQUID_CTX);
}

void loop() {
  while (Serial.available() > 0) answer(fade_feed(&fade, (char)Serial.read()));
}
