/* A bare websocket client: prints, by the machine's monotonic clock read straight after read(), when the frame that tells
 * of each finalized head arrived. Arguments: port. Build: cc -O2 -o socket_client socket_client.c */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char HELLO[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n";
static const char ASK[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"chain_subscribeFinalizedHeads\",\"params\":[]}";

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    int on = 1, sock = socket(AF_INET, SOCK_STREAM, 0);
    static char buffer[1 << 16];
    static const char PONG[6] = {(char)0x8a, (char)0x80}; /* empty, masked with zeros */
    char frame[256] = {(char)0x81, (char)(0x80 | (sizeof ASK - 1))}; /* one text frame, masked with zeros */
    if (argc < 2)
        return 2;
    address.sin_port = htons((unsigned short)atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(sock, (struct sockaddr *)&address, sizeof address) || write(sock, HELLO, sizeof HELLO - 1) < 0)
        return 1;
    if (read(sock, buffer, sizeof buffer - 1) <= 0)
        return 1;
    memcpy(frame + 6, ASK, sizeof ASK - 1);
    if (write(sock, frame, 6 + sizeof ASK - 1) < 0)
        return 1;
    printf("{\"ready\": true}\n");
    fflush(stdout);
    for (;;) {
        struct timespec now;
        ssize_t got = read(sock, buffer, sizeof buffer - 1);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (got <= 0)
            return 0;
        buffer[got] = 0;
        for (ssize_t i = 0; i < got; i++) /* frame headers are not text */
            if (!buffer[i])
                buffer[i] = ' ';
        for (char *found = buffer; (found = strstr(found, "\"number\":\"0x"));) {
            found += 12;
            printf("{\"number\": %ld, \"at\": %ld.%09ld}\n", strtol(found, NULL, 16), (long)now.tv_sec, now.tv_nsec);
            fflush(stdout);
        }
        if (write(sock, PONG, sizeof PONG) < 0) /* the node closes connections that answer none of its pings */
            return 1;
    }
}
