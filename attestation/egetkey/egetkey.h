/* EGETKEY from inside an enclave, and the verification of a local report with it. Layouts: Intel SDM 3D, 38. */
#ifndef DCUPGRADE_EGETKEY_H
#define DCUPGRADE_EGETKEY_H

#include <stddef.h>
#include <stdint.h>

enum { KEYREQUEST_SIZE = 512, REPORT_SIZE = 432, REPORT_BODY_SIZE = 384, KEY_SIZE = 16 };

/* verify_report: the MAC does not hold. Above every error code of EGETKEY. */
enum { REPORT_MAC_BAD = 0x10000 };

/* Gives EGETKEY's RAX: 0 and the key, or an error code and zeros. Buffers need no alignment. */
uint32_t egetkey(const uint8_t request[KEYREQUEST_SIZE], uint8_t key[KEY_SIZE]);

/* 0: the report was made for this enclave on this CPU. The report key is wiped before this returns. */
uint32_t verify_report(const uint8_t report[REPORT_SIZE]);

/* AES-128-CMAC (NIST SP 800-38B) of whole 16-byte blocks, at least one; size is a multiple of 16. */
void aes_cmac(const uint8_t key[KEY_SIZE], const uint8_t *data, size_t size, uint8_t mac[KEY_SIZE]);

#ifdef EGETKEY_STAND_IN
/* Tests link their own instruction: it gets what the real one gets, aligned as the real one asks for. */
uint32_t egetkey_stand_in(const void *request, void *key);
#endif

#endif
