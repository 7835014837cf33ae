/* Python's view of egetkey.h: _egetkey.egetkey(request) -> (code, key), _egetkey.verify_report(report) -> code. */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "egetkey.h"

#ifdef EGETKEY_STAND_IN
/* Tests only: a key that depends on every byte of the request, and an error code for a seal key of ISVSVN 99. */
uint32_t egetkey_stand_in(const void *request, void *key) {
    static const uint8_t root[KEY_SIZE] = "test stand-in k";
    const uint8_t *bytes = request;
    if ((uintptr_t)request % KEYREQUEST_SIZE || (uintptr_t)key % KEY_SIZE)
        return 0xffff;
    if (bytes[0] == 4 && bytes[4] == 99)
        return 64;
    aes_cmac(root, request, KEYREQUEST_SIZE, key);
    return 0;
}
#endif

static int need(Py_ssize_t size, Py_ssize_t wanted) {
    if (size == wanted)
        return 1;
    PyErr_Format(PyExc_ValueError, "%zd bytes instead of %zd", size, wanted);
    return 0;
}

static PyObject *py_egetkey(PyObject *self, PyObject *args) {
    const char *request;
    Py_ssize_t size;
    uint8_t key[KEY_SIZE];
    (void)self;
    if (!PyArg_ParseTuple(args, "y#", &request, &size) || !need(size, KEYREQUEST_SIZE))
        return NULL;
    unsigned long code = egetkey((const uint8_t *)request, key);
    PyObject *result = Py_BuildValue("ky#", code, (const char *)key, (Py_ssize_t)KEY_SIZE);
    memset(key, 0, sizeof key);
    __asm__ volatile("" : : "r"(key) : "memory");
    return result;
}

static PyObject *py_verify_report(PyObject *self, PyObject *args) {
    const char *report;
    Py_ssize_t size;
    (void)self;
    if (!PyArg_ParseTuple(args, "y#", &report, &size) || !need(size, REPORT_SIZE))
        return NULL;
    return PyLong_FromUnsignedLong(verify_report((const uint8_t *)report));
}

static PyMethodDef methods[] = {
    {"egetkey", py_egetkey, METH_VARARGS, "egetkey(request: bytes) -> tuple[int, bytes]: EGETKEY's code and key."},
    {"verify_report", py_verify_report, METH_VARARGS, "verify_report(report: bytes) -> int: 0, or what failed."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_egetkey", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__egetkey(void) { return PyModule_Create(&definition); }
