/* Sets TCP_NODELAY on each connection that a program accepts: `LD_PRELOAD=nodelay.so program`. For a stock node, whose
 * RPC server leaves it off. Build: cc -O2 -shared -fPIC -o nodelay.so nodelay.c */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int without_delay(int sock) {
    int on = 1;
    if (sock >= 0)
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails on other sockets, which is right */
    return sock;
}

int accept(int listener, struct sockaddr *address, socklen_t *length) {
    int (*next)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "accept");
    return without_delay(next(listener, address, length));
}

int accept4(int listener, struct sockaddr *address, socklen_t *length, int flags) {
    int (*next)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    return without_delay(next(listener, address, length, flags));
}
