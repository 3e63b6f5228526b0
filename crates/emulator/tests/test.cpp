// What the emulator promises: sentences, each checked.
#include "check.hpp"

void test_blocks();
void test_cards();
void test_candle();
void test_driver();
void test_products();

int main() {
    test_blocks();
    test_candle();
    test_driver();
    test_products();
    test_cards();
    printf(failures == 0 ? "every test passed\n" : "%d wrong\n", failures);
    return failures == 0 ? 0 : 1;
}
