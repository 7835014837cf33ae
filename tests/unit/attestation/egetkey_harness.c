/* Runs egetkey.c under the sanitizers, with a stand-in for the instruction. Prints what failed; 0 if nothing did. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "egetkey.h"

static int failures;
static uint32_t next_code;
static uint8_t last_request[KEYREQUEST_SIZE];
static const uint8_t REPORT_KEY[KEY_SIZE] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static void check(int holds, const char *what) {
    if (!holds) {
        printf("failed: %s\n", what);
        failures++;
    }
}

uint32_t egetkey_stand_in(const void *request, void *key) {
    check((uintptr_t)request % KEYREQUEST_SIZE == 0, "KEYREQUEST is aligned to 512 bytes");
    check((uintptr_t)key % KEY_SIZE == 0, "the key is aligned to 16 bytes");
    memcpy(last_request, request, KEYREQUEST_SIZE);
    memcpy(key, REPORT_KEY, KEY_SIZE);
    return next_code;
}

/* On the heap, of the exact size and badly aligned: one byte read too many is caught. */
static uint8_t *exact(size_t size, uint8_t **block) {
    *block = malloc(size + 1);
    if (!*block)
        abort();
    memset(*block, 0, size + 1);
    return *block + 1;
}

static void test_cmac(void) {
    static const uint8_t key[KEY_SIZE] = {0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6,
                                          0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c};
    static const uint8_t message[64] = {
        0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d, 0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a,
        0xae, 0x2d, 0x8a, 0x57, 0x1e, 0x03, 0xac, 0x9c, 0x9e, 0xb7, 0x6f, 0xac, 0x45, 0xaf, 0x8e, 0x51,
        0x30, 0xc8, 0x1c, 0x46, 0xa3, 0x5c, 0xe4, 0x11, 0xe5, 0xfb, 0xc1, 0x19, 0x1a, 0x0a, 0x52, 0xef,
        0xf6, 0x9f, 0x24, 0x45, 0xdf, 0x4f, 0x9b, 0x17, 0xad, 0x2b, 0x41, 0x7b, 0xe6, 0x6c, 0x37, 0x10};
    static const uint8_t one[KEY_SIZE] = {0x07, 0x0a, 0x16, 0xb4, 0x6b, 0x4d, 0x41, 0x44,
                                          0xf7, 0x9b, 0xdd, 0x9d, 0xd0, 0x4a, 0x28, 0x7c};
    static const uint8_t four[KEY_SIZE] = {0x51, 0xf0, 0xbe, 0xbf, 0x7e, 0x3b, 0x9d, 0x92,
                                           0xfc, 0x49, 0x74, 0x17, 0x79, 0x36, 0x3c, 0xfe};
    uint8_t mac[KEY_SIZE], *block, *data = exact(sizeof message, &block);
    memcpy(data, message, sizeof message);
    aes_cmac(key, data + 48, 16, mac);
    aes_cmac(key, message, 16, mac);
    check(memcmp(mac, one, KEY_SIZE) == 0, "CMAC of one block (SP 800-38B, D.1)");
    aes_cmac(key, data, sizeof message, mac);
    check(memcmp(mac, four, KEY_SIZE) == 0, "CMAC of four blocks (SP 800-38B, D.1)");
    free(block);
}

static void test_egetkey(void) {
    uint8_t *request_block, *key_block;
    uint8_t *request = exact(KEYREQUEST_SIZE, &request_block), *key = exact(KEY_SIZE, &key_block);
    for (int i = 0; i < KEYREQUEST_SIZE; i++)
        request[i] = (uint8_t)(i * 7);
    next_code = 0;
    check(egetkey(request, key) == 0 && memcmp(key, REPORT_KEY, KEY_SIZE) == 0, "the key is handed on");
    check(memcmp(last_request, request, KEYREQUEST_SIZE) == 0, "the request is handed on whole");
    static const uint8_t zeros[KEY_SIZE];
    next_code = 32;
    check(egetkey(request, key) == 32, "the error code is handed on");
    check(memcmp(key, zeros, KEY_SIZE) == 0, "with an error there is no key, whatever the instruction wrote");
    free(request_block);
    free(key_block);
}

static void test_verify(void) {
    uint8_t *block, *report = exact(REPORT_SIZE, &block);
    for (int i = 0; i < 416; i++)
        report[i] = (uint8_t)(i * 3);
    aes_cmac(REPORT_KEY, report, REPORT_BODY_SIZE, report + 416);
    next_code = 0;
    check(verify_report(report) == 0, "a good report verifies");
    check(last_request[0] == 3 && last_request[1] == 0, "the report key is asked for");
    check(memcmp(last_request + 40, report + 384, 32) == 0, "under the report's KEYID");
    for (int i = 2; i < KEYREQUEST_SIZE; i++)
        check(last_request[i] == 0 || (i >= 40 && i < 72), "and nothing else is in the request");
    for (int i = 0; i < REPORT_SIZE; i++)
        for (int bit = 0; bit < 8; bit++) {
            report[i] ^= (uint8_t)(1 << bit);
            uint32_t wanted = i >= 384 && i < 416 ? 0 : REPORT_MAC_BAD;
            check(verify_report(report) == wanted, "each bit of body and MAC counts");
            report[i] ^= (uint8_t)(1 << bit);
        }
    next_code = 2;
    check(verify_report(report) == 2, "EGETKEY's error code is handed on");
    free(block);
}

int main(void) {
    test_cmac();
    test_egetkey();
    test_verify();
    return failures != 0;
}
