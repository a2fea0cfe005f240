/* startup.c: from reset to main on a Cortex-M4F without any library. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t board_data_from[], board_data[], board_data_end[], board_bss[], board_bss_end[], board_stack_top[];
int main(void);
void Reset_Handler(void);
void board_done(int status);

/* compilers may call these by name even where no source does */
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
void __aeabi_memcpy(void *to, const void *from, size_t n);
void __aeabi_memcpy4(void *to, const void *from, size_t n);
void __aeabi_memclr(void *to, size_t n);
void __aeabi_memclr4(void *to, size_t n);

void *memcpy(void *to, const void *from, size_t n)
{
    char *t = (char *)to;
    const char *f = (const char *)from;
    while (n-- > 0) {
        *t++ = *f++;
        __asm__ volatile("" ::: "memory"); /* or the loop becomes a call to itself */
    }
    return to;
}

void *memset(void *to, int value, size_t n)
{
    char *t = (char *)to;
    while (n-- > 0) {
        *t++ = (char)value;
        __asm__ volatile("" ::: "memory");
    }
    return to;
}

void __aeabi_memcpy(void *to, const void *from, size_t n) { memcpy(to, from, n); }
void __aeabi_memcpy4(void *to, const void *from, size_t n) { memcpy(to, from, n); }
void __aeabi_memclr(void *to, size_t n) { memset(to, 0, n); }
void __aeabi_memclr4(void *to, size_t n) { memset(to, 0, n); }

#if defined(__clang__)
__attribute__((minsize))
#endif
__attribute__((noreturn, used)) void Reset_Handler(void)
{
    uint32_t *from = board_data_from, *to;
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: let the floating-point unit run, whoever may want it */
    for (to = board_data; to < board_data_end;) *to++ = *from++;
    for (to = board_bss; to < board_bss_end;) *to++ = 0;
    board_done(main());
    for (;;) __asm__ volatile("nop");
}

static void fault(void)
{
    for (;;) __asm__ volatile("nop");
}

typedef struct { uint32_t *stack; void (*entry[15])(void); } board_vectors;
__attribute__((section(".vectors"), used)) const board_vectors vectors = {
    board_stack_top, {Reset_Handler, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault}};
