/* See egetkey.h. AES by the processor's own instructions: constant time, and every CPU with SGX has them. */
#include "egetkey.h"

#include <emmintrin.h>
#include <string.h>
#include <wmmintrin.h>

#define AES __attribute__((target("aes,sse2")))

enum { ENCLU_EGETKEY = 1, KEYNAME_REPORT = 3, KEYREQUEST_KEYID = 40, REPORT_KEYID = 384, REPORT_MAC = 416 };

/* The compiler may not drop these stores: the pointer is used by an empty instruction that reads memory. */
static void wipe(void *secret, size_t size) {
    memset(secret, 0, size);
    __asm__ volatile("" : : "r"(secret) : "memory");
}

#ifdef EGETKEY_STAND_IN
static uint32_t instruction(const void *request, void *key) { return egetkey_stand_in(request, key); }
#else
static uint32_t instruction(const void *request, void *key) {
    uint64_t rax = ENCLU_EGETKEY;
    __asm__ volatile("enclu" : "+a"(rax) : "b"(request), "c"(key) : "memory", "cc");
    return (uint32_t)rax;
}
#endif

uint32_t egetkey(const uint8_t request[KEYREQUEST_SIZE], uint8_t key[KEY_SIZE]) {
    /* Operands that are not aligned so end in a general protection fault. */
    _Alignas(KEYREQUEST_SIZE) uint8_t aligned_request[KEYREQUEST_SIZE];
    _Alignas(KEY_SIZE) uint8_t aligned_key[KEY_SIZE] = {0};

    memcpy(aligned_request, request, KEYREQUEST_SIZE);
    uint32_t code = instruction(aligned_request, aligned_key);
    if (code == 0)
        memcpy(key, aligned_key, KEY_SIZE);
    else
        memset(key, 0, KEY_SIZE);
    wipe(aligned_key, sizeof aligned_key);
    return code;
}

AES static __m128i next_round_key(__m128i key, __m128i assist) {
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
    return _mm_xor_si128(key, _mm_shuffle_epi32(assist, 0xff));
}

AES static void expand_key(const uint8_t key[KEY_SIZE], __m128i rounds[11]) {
    rounds[0] = _mm_loadu_si128((const __m128i *)key);
/* The round constant is part of the instruction, so a loop cannot give it. */
#define ROUND(i, constant) rounds[i] = next_round_key(rounds[i - 1], _mm_aeskeygenassist_si128(rounds[i - 1], constant))
    ROUND(1, 0x01);
    ROUND(2, 0x02);
    ROUND(3, 0x04);
    ROUND(4, 0x08);
    ROUND(5, 0x10);
    ROUND(6, 0x20);
    ROUND(7, 0x40);
    ROUND(8, 0x80);
    ROUND(9, 0x1b);
    ROUND(10, 0x36);
#undef ROUND
}

AES static __m128i encrypt(const __m128i rounds[11], __m128i block) {
    block = _mm_xor_si128(block, rounds[0]);
    for (int i = 1; i < 10; i++)
        block = _mm_aesenc_si128(block, rounds[i]);
    return _mm_aesenclast_si128(block, rounds[10]);
}

/* Multiply by x in GF(2^128), SP 800-38B 6.1: the first subkey, for a message of whole blocks. */
static void double_block(uint8_t block[KEY_SIZE]) {
    uint8_t carry = block[0] >> 7;
    for (int i = 0; i < KEY_SIZE - 1; i++)
        block[i] = (uint8_t)(block[i] << 1 | block[i + 1] >> 7);
    block[KEY_SIZE - 1] = (uint8_t)(block[KEY_SIZE - 1] << 1 ^ (0x87 & -carry));
}

AES void aes_cmac(const uint8_t key[KEY_SIZE], const uint8_t *data, size_t size, uint8_t mac[KEY_SIZE]) {
    __m128i rounds[11];
    uint8_t subkey[KEY_SIZE];
    expand_key(key, rounds);
    _mm_storeu_si128((__m128i *)subkey, encrypt(rounds, _mm_setzero_si128()));
    double_block(subkey);

    __m128i state = _mm_setzero_si128();
    for (size_t at = 0; at < size; at += KEY_SIZE) {
        state = _mm_xor_si128(state, _mm_loadu_si128((const __m128i *)(data + at)));
        if (at + KEY_SIZE == size)
            state = _mm_xor_si128(state, _mm_loadu_si128((const __m128i *)subkey));
        state = encrypt(rounds, state);
    }
    _mm_storeu_si128((__m128i *)mac, state);
    wipe(rounds, sizeof rounds);
    wipe(subkey, sizeof subkey);
}

/* Time depends on nothing but the size. */
static uint32_t differ(const uint8_t *a, const uint8_t *b, size_t size) {
    volatile uint8_t difference = 0;
    for (size_t i = 0; i < size; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return difference;
}

uint32_t verify_report(const uint8_t report[REPORT_SIZE]) {
    uint8_t request[KEYREQUEST_SIZE] = {KEYNAME_REPORT};
    uint8_t key[KEY_SIZE], mac[KEY_SIZE];
    memcpy(request + KEYREQUEST_KEYID, report + REPORT_KEYID, 32);

    uint32_t code = egetkey(request, key);
    if (code == 0) {
        aes_cmac(key, report, REPORT_BODY_SIZE, mac);
        if (differ(mac, report + REPORT_MAC, KEY_SIZE))
            code = REPORT_MAC_BAD;
        /* The right MAC for a forged report is a secret too. */
        wipe(mac, sizeof mac);
    }
    wipe(key, sizeof key);
    return code;
}
