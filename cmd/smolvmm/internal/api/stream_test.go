package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/client"
)

// A reader hears of all that was and is, in order; a slow one is told that it
// has missed some.
func TestEvents(t *testing.T) {
	s, path := serve(t, Config{})
	c := client.New(path)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Start(ctx); err == nil {
		t.Fatal("started without a kernel")
	}
	s.Started()
	var got []string
	for e, err := range c.Events(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq != uint64(len(got)+1) || e.Time.IsZero() {
			t.Errorf("event %+v behind %d others", e, len(got))
		}
		got = append(got, e.Event)
		switch e.Event {
		case client.EventStarted:
			if err := c.Pause(ctx); err != nil {
				t.Fatal(err)
			}
		case client.EventPaused:
			if err := c.Resume(ctx); err != nil {
				t.Fatal(err)
			}
		case client.EventResumed:
			s.Ended(client.Exit{How: "done", Kind: "exit", Status: 4})
		}
	}
	if want := "created started paused resumed ended"; strings.Join(got, " ") != want {
		t.Errorf("events %v, want %s", got, want)
	}
	if e, err := c.Wait(ctx); err != nil || e.Status != 4 {
		t.Errorf("Wait: %+v, %v", e, err)
	}

	l := newEventLog()
	for range keptEvents + 10 {
		l.add(client.Event{Event: "x"})
	}
	events, next, _ := l.since(1)
	if len(events) != keptEvents+1 || events[0].Event != client.EventLost || events[0].Seq != 10 || events[1].Seq != 11 || next != keptEvents+11 {
		t.Errorf("%d events, first %+v, next %d", len(events), events[0], next)
	}
}

// The agent's stream is the agent's, both ways and to the end of each.
func TestAgent(t *testing.T) {
	s, path := serve(t, Config{})
	s.Started()
	c := client.New(path)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var refused *client.Error
	if _, err := c.Agent(ctx); !errors.As(err, &refused) || refused.Status != 501 || refused.Message != ErrNoAgent.Error() {
		t.Fatalf("without an agent: %v", err)
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // the guest: says hello first, then gives everything back
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello ")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	s.SetAgent(dialer{l.Addr().String()})
	for range 3 {
		conn, err := c.Agent(ctx)
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		go func() {
			_, _ = conn.Write(data)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != "hello "+string(data) {
			t.Errorf("%d bytes came back: %v", len(got), err)
		}
		conn.Close()
	}
	conn, err := c.Agent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = s.Close() // ends streams
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
}

// deaf is an Agent whose guest neither reads nor writes nor hangs up.
type deaf struct{ hungUp chan struct{} }

type deafConn struct {
	net.Conn
	once   sync.Once
	hungUp chan<- struct{}
}

func (c *deafConn) Close() error {
	c.once.Do(func() { c.hungUp <- struct{}{} })
	return c.Conn.Close()
}

func (d deaf) Dial(context.Context) (net.Conn, error) {
	near, _ := net.Pipe()
	return &deafConn{Conn: near, hungUp: d.hungUp}, nil
}
func (deaf) Shutdown(context.Context) error { return errors.New("it hears nothing") }

// TestAgentDeaf: a guest that neither reads nor hangs up keeps nobody's place when
// its caller has gone, and a caller who only says no more keeps his.
func TestAgentDeaf(t *testing.T) {
	d := deaf{make(chan struct{}, 1)}
	s, path := serve(t, Config{Agent: d})
	s.Started()
	call := func() net.Conn {
		conn, err := client.New(path).Agent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for _, sends := range []int{0, 1 << 20} { // idle, and in the middle of a write
		conn := call()
		if sends > 0 {
			_ = conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			_, _ = conn.Write(make([]byte, sends))
		}
		conn.Close()
		select {
		case <-d.hungUp:
		case <-time.After(10 * time.Second):
			t.Fatalf("after %d bytes the guest is still held", sends)
		}
	}
	conn := call()
	defer conn.Close()
	_, _ = conn.Write([]byte("held up"))
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(lookEvery * 3 / 2))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who only says no more is hung up on: %v", err)
	}
}

// sated is an Agent whose guest takes nothing, and speaks all the same.
type sated struct{ told chan struct{} }

type satedConn struct {
	net.Conn
	words io.Reader
	told  <-chan struct{}
}

func (c satedConn) Write([]byte) (int, error) { return 0, unix.EPIPE }
func (c satedConn) Read(b []byte) (int, error) {
	<-c.told
	return c.words.Read(b)
}

func (a sated) Dial(context.Context) (net.Conn, error) {
	near, _ := net.Pipe()
	return satedConn{near, strings.NewReader("the last words"), a.told}, nil
}
func (sated) Shutdown(context.Context) error { return errors.New("not today") }

// TestAgentSated: what the guest has said reaches its caller also when the guest
// takes nothing more of his, as when a command ends beside its input.
func TestAgentSated(t *testing.T) {
	a := sated{make(chan struct{})}
	s, path := serve(t, Config{Agent: a})
	s.Started()
	conn, err := client.New(path).Agent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	// More than sockets hold: all of it was taken, so the guest's refusal was seen.
	if _, err := conn.Write(make([]byte, 4<<20)); err != nil {
		t.Error(err)
	}
	close(a.told)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "the last words" {
		t.Errorf("%q, %v", got, err)
	}
}

// dialer is an Agent behind a Unix socket.
type dialer struct{ path string }

func (d dialer) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", d.path)
}
func (dialer) Shutdown(context.Context) error { return errors.New("not today") }

// A stop asks where it can, and kills when the grace is over, or at once.
func TestStop(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	t.Run("nobody to ask", func(t *testing.T) {
		f := newFake()
		s, path := serve(t, Config{Host: f})
		s.Started()
		asked, err := client.New(path).Stop(ctx, time.Hour)
		if err != nil || asked {
			t.Errorf("asked %v, %v", asked, err)
		}
		<-f.killed
	})
	t.Run("asked in vain", func(t *testing.T) {
		f := newFake()
		s, path := serve(t, Config{Host: f, Agent: agentTo{shutdown: func() error { return nil }}})
		s.Started()
		asked, err := client.New(path).Stop(ctx, 20*time.Millisecond)
		if err != nil || !asked {
			t.Errorf("asked %v, %v", asked, err)
		}
		if why := <-f.killed; !strings.Contains(why, "20ms") {
			t.Errorf("killed: %s", why)
		}
	})
	t.Run("asked", func(t *testing.T) {
		f := newFake()
		shut := make(chan struct{})
		s, path := serve(t, Config{Host: f, Agent: agentTo{shutdown: func() error { close(shut); return nil }}})
		s.Started()
		if err := client.New(path).Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-shut
		s.Ended(client.Exit{How: "well"})
		_ = s.Close()
		if len(f.killed) != 0 {
			t.Error("killed too")
		}
	})
	t.Run("refused", func(t *testing.T) {
		_, path := serve(t, Config{})
		if _, err := client.New(path).Stop(ctx, -time.Second); err == nil {
			t.Error("a negative grace was taken")
		}
		if _, err := client.New(path).Stop(ctx, 48*time.Hour); err == nil {
			t.Error("two days of grace were taken")
		}
	})
}

// The log follows PUT /logger, with its level, to files and to pipes that nobody
// reads.
func TestLogger(t *testing.T) {
	var first bytes.Buffer
	log, err := NewLog(&first, Text, slog.LevelInfo, false)
	if err != nil {
		t.Fatal(err)
	}
	logger := log.Logger().With("a", 1).WithGroup("g").With("b", 2)
	logger.Info("one", "c", 3)
	logger.Debug("unseen")
	if got := first.String(); got != "level=INFO msg=one a=1 g.b=2 g.c=3\n" {
		t.Errorf("%q", got)
	}
	_, path := serve(t, Config{Log: log})
	target := filepath.Join(t.TempDir(), "log")
	walk(t, path, []step{
		{"PUT", "/logger", `{"log_path":"/nowhere/log"}`, 400, "no such file"},
		{"PUT", "/logger", `{"log_path":"/"}`, 400, "is a directory"},
		{"PUT", "/logger", `{"level":"Loud"}`, 400, "unknown variant"},
		{"PUT", "/logger", `{"module":"x"}`, 400, "module"},
		{"PUT", "/logger", `{"log_path":"` + target + `","level":"debug","show_level":false,"show_log_origin":true}`, 204, ""},
		{"GET", "/vm/config", "", 200, `"level":"debug"`},
	})
	logger.Debug("two")
	got, err := os.ReadFile(target)
	if err != nil || !regexp.MustCompile(`time=\S+Z source=\S+stream_test.go:\d+ msg=two a=1 g.b=2`).Match(got) || strings.Contains(string(got), "level=") {
		t.Errorf("%q, %v", got, err)
	}
	if strings.Contains(first.String(), "two") {
		t.Error("the old target still gets lines")
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	walk(t, path, []step{{"PUT", "/logger", `{"log_path":"` + pipe + `","level":"Info"}`, 204, ""}})
	for range 5000 { // more than a pipe holds
		logger.Info(strings.Repeat("x", 100))
	}
	if log.own.lost == 0 {
		t.Error("a full pipe lost nothing: has it been read?")
	}
	if _, err := NewLog(&first, "xml", 0, false); err == nil {
		t.Error("xml was taken")
	}
}

func TestLogJSON(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLog(&out, JSON, slog.LevelWarn, false)
	if err != nil {
		t.Fatal(err)
	}
	log.Logger().Warn("w", "k", "v")
	if !regexp.MustCompile(`^\{"time":"[^"]+Z","level":"WARN","msg":"w","k":"v"\}\n$`).MatchString(out.String()) {
		t.Errorf("%q", out.String())
	}
}

// The page is Prometheus's text format: every sample of a family that was
// declared, labels quoted, histograms that add up.
func TestPrometheus(t *testing.T) {
	s, path := serve(t, Config{ID: "a", Image: "sl\\ash \"q\"\nnl"})
	s.Started()
	_, text := ask(t, path, "GET", "/metrics", "")
	sample := regexp.MustCompile(`^(smolvmm_[a-z_]+)(\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? (\S+)$`)
	kinds := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if f := strings.Fields(line); strings.HasPrefix(line, "# TYPE ") {
			if kinds[f[2]] != "" {
				t.Errorf("%s is declared twice", f[2])
			}
			kinds[f[2]] = f[3]
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no sample: %q", line)
			continue
		}
		family := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if f := strings.TrimSuffix(m[1], suffix); kinds[f] == "histogram" {
				family = f
			}
		}
		if kinds[family] == "" {
			t.Errorf("%q has no type", line)
		}
	}
	for _, want := range []string{
		`smolvmm_info{name="a",image="sl\\ash \"q\"\nnl",version=""} 1`,
		`smolvmm_vcpu_exits_total{vcpu="0",kind="mmio_write"} 4`, `smolvmm_vcpu_unclaimed_total{vcpu="0"} 7`,
		`smolvmm_disk_requests_total{disk="0",queue="0",op="read"} 3`, `smolvmm_disk_bytes_total{disk="0",queue="0",op="read"} 4096`,
		`smolvmm_disk_request_seconds_bucket{disk="0",op="read",le="2.048e-06"} 0`, `smolvmm_disk_request_seconds_bucket{disk="0",op="read",le="4.096e-06"} 2`,
		`smolvmm_disk_request_seconds_bucket{disk="0",op="read",le="+Inf"} 3`, `smolvmm_disk_request_seconds_count{disk="0",op="read"} 3`,
		`smolvmm_disk_request_seconds_sum{disk="0",op="read"} 0.001`,
		`smolvmm_net_frames_total{interface="0",queue="0",direction="rx"} 2`, `smolvmm_net_frames_total{interface="0",queue="1",direction="rx"} 0`,
		`smolvmm_net_dropped_total{interface="0",direction="tx",reason="oversized"} 8`,
		`smolvmm_network_total{interface="0",what="denied"} 3`, `smolvmm_interrupts_total{device="disk0"} 9`, `smolvmm_interrupts_total{device="vsock"} 11`,
		`smolvmm_vsock_connections 2`, `smolvmm_vsock_connections_total{by="host"} 6`, `smolvmm_vsock_bytes_total{direction="tx"} 70`,
		`smolvmm_vsock_packets_total{direction="rx"} 8`, `smolvmm_vsock_dropped_total{reason="spoofed"} 4`, `smolvmm_vsock_waits_total 12`,
		`smolvmm_memory_bytes 6.7108864e+07`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
