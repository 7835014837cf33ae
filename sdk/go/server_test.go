package handover

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve starts a server with room for a few connections and returns its address.
func serve(t *testing.T, handler http.Handler, connections int) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(handler)
	server.max = connections
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func get(t *testing.T, address string) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	answer, err := client.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

var fine = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, "fine")
})

func TestConnectionsThatWaitGiveWayToNewcomers(t *testing.T) {
	for name, said := range map[string]string{
		"silent":          "",
		"half a header":   "POST / HTTP/1.1\r\nHost: localhost\r\n",
		"half a body":     "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
		"half a chunk":    "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
		"idle, keptalive": "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			address := serve(t, fine, 8)
			for range 20 {
				c := dial(t, address)
				io.WriteString(c, said)
				if strings.HasPrefix(said, "GET") {
					if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if status := get(t, address); status != 200 {
				t.Errorf("status %d", status)
			}
		})
	}
}

func TestAClientThatDoesNotReadItsAnswerGivesWay(t *testing.T) {
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			w.Write(make([]byte, 64<<20)) // more than the buffers of a connection
			return
		}
		io.WriteString(w, "fine")
	}), 4)
	for range 4 {
		io.WriteString(dial(t, address), "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	// Well before their time to read is over.
	for began := time.Now(); time.Since(began) < writeTimeout*8/10; {
		c := dial(t, address)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil && answer.StatusCode == 200 {
			return
		}
	}
	t.Error("clients that do not read keep everybody else out")
}

func TestAProcessWithoutDescriptorsCutsTheLongestSilentOff(t *testing.T) {
	listener := &refusing{left: 1}
	server := NewServer(fine)
	guarded := &guardedListener{listener, server}
	first, err := guarded.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guarded.Accept(); err == nil {
		t.Fatal("it accepted where nothing could give way any more")
	}
	if _, err := first.Write([]byte("x")); err == nil {
		t.Error("the silent connection is still there")
	}
}

// refusing accepts so many connections and then has no descriptor left.
type refusing struct {
	net.Listener
	left int
}

func (r *refusing) Accept() (net.Conn, error) {
	if r.left == 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	r.left--
	ours, _ := net.Pipe()
	return ours, nil
}

func TestARequestThatIsBeingAnsweredKeepsItsConnection(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			began <- struct{}{}
			<-finish
		}
		io.WriteString(w, "fine")
	}), 4)
	c := dial(t, address)
	io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-began
	for range 20 {
		dial(t, address)
	}
	if status := get(t, address); status != 200 {
		t.Errorf("status %d", status)
	}
	close(finish)
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || answer.StatusCode != 200 {
		t.Error("it was cut off:", err)
	}
}

func TestEveryPathOfAServerIsForLoopbackProgramsOnly(t *testing.T) {
	address := serve(t, fine, 8)
	for host, want := range map[string]int{"localhost": 200, "127.0.0.1:9": 200, "evil.example": 400, "": 400} {
		c := dial(t, address)
		fmt.Fprintf(c, "GET /health HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || answer.StatusCode != want {
			t.Errorf("%q: %v, %v", host, answer, err)
		}
	}
}
