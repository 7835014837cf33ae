package handover

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	headerTimeout    = 10 * time.Second
	idleTimeout      = 30 * time.Second
	writeTimeout     = 10 * time.Second
	connectionsMax   = 512
	headerBytesMax   = 16 * 1024
	shutdownPatience = 5 * time.Second
)

// Server serves a handler on loopback so that a stranger on the host cannot starve it: requests of other hosts than
// loopback and of browsers are refused on every path, and of 512 connections the one whose client has been silent for
// longest gives way to a newcomer: idle, in the middle of its request, or not reading its answer.
//
// The zero value of the limits is not usable; make a Server with [NewServer].
type Server struct {
	http *http.Server
	mu   sync.Mutex
	// waiting holds the connections that wait for their client, longest silent first.
	waiting *list.List
	open    int
	max     int
}

// NewServer returns a server for a handler, which may serve paths of the node's own beside a [Holder].
func NewServer(handler http.Handler) *Server {
	s := &Server{waiting: list.New(), max: connectionsMax}
	s.http = &http.Server{
		Handler:           s.guard(handler),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateIdle {
				s.wait(c.(*conn))
			}
		},
	}
	return s
}

// Serve answers requests on listener until ctx ends; requests under way are then finished for up to five seconds.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPatience)
		defer cancel()
		if s.http.Shutdown(patience) != nil {
			s.http.Close()
		}
	})
	defer stop()
	err := s.http.Serve(&guardedListener{listener, s})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

type connKey struct{}

func (s *Server) guard(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := refuseStrangers(r); err != nil {
			writeError(w, err)
			return
		}
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			if r.ContentLength == 0 {
				s.work(c)
			} else {
				r.Body = &watchedBody{r.Body, func() { s.work(c) }}
			}
		}
		handler.ServeHTTP(w, r)
	})
}

// wait puts a connection among those that can give way, and tells whether it was not there already.
func (s *Server) wait(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place != nil || c.gone {
		return false
	}
	c.place = s.waiting.PushBack(c)
	return true
}

// work takes a connection out of them: its request is complete, and being answered.
func (s *Server) work(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place != nil {
		s.waiting.Remove(c.place)
		c.place = nil
	}
}

// admit makes room for a new connection; it returns the one that must give way, and false where there is no room.
func (s *Server) admit(c *conn) (victim *conn, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= s.max {
		if victim = s.oldest(); victim == nil {
			return nil, false
		}
	}
	s.open++
	c.place = s.waiting.PushBack(c)
	return victim, true
}

// oldest drops the connection that has waited for longest, and returns nil where none waits. The caller holds the lock.
func (s *Server) oldest() *conn {
	front := s.waiting.Front()
	if front == nil {
		return nil
	}
	victim := front.Value.(*conn)
	s.drop(victim)
	return victim
}

// drop forgets a connection. The caller holds the lock.
func (s *Server) drop(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	s.open--
	if c.place != nil {
		s.waiting.Remove(c.place)
		c.place = nil
	}
}

type guardedListener struct {
	net.Listener
	server *Server
}

func (l *guardedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && l.cutOldest() {
			continue
		}
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, server: l.server}
		victim, ok := l.server.admit(c)
		if victim != nil {
			victim.Conn.Close()
		}
		if ok {
			return c, nil
		}
		raw.Close()
	}
}

// cutOldest frees a descriptor where the process has none left.
func (l *guardedListener) cutOldest() bool {
	l.server.mu.Lock()
	victim := l.server.oldest()
	l.server.mu.Unlock()
	return victim != nil && victim.Conn.Close() == nil
}

// conn is one connection in the server's count.
type conn struct {
	net.Conn
	server *Server
	place  *list.Element // among the waiting; guarded by the server's lock, like gone
	gone   bool
}

// Write gives a client that does not read its answers ten seconds, if nobody needs its place meanwhile.
func (c *conn) Write(data []byte) (int, error) {
	if c.server.wait(c) {
		defer c.server.work(c)
	}
	c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return c.Conn.Write(data)
}

func (c *conn) Close() error {
	c.server.mu.Lock()
	c.server.drop(c)
	c.server.mu.Unlock()
	return c.Conn.Close()
}

// watchedBody reports when the request is complete.
type watchedBody struct {
	io.ReadCloser
	complete func()
}

func (b *watchedBody) Read(data []byte) (int, error) {
	n, err := b.ReadCloser.Read(data)
	if err == io.EOF {
		b.complete()
	}
	return n, err
}
