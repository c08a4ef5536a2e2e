package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm/client"
)

// serve answers on a Unix socket as h does.
func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "client-*")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() {
		s.Close()
		os.RemoveAll(dir)
	})
	return path
}

// Each call makes the request that it says.
func TestRequests(t *testing.T) {
	var got, answer string
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = strings.TrimSpace(r.Method + " " + r.URL.RequestURI() + " " + string(b))
		io.WriteString(w, answer)
	})
	c := client.New(path)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, call := range []struct {
		do           func() error
		answer, want string
	}{
		{func() error {
			i, err := c.Info(ctx)
			if err == nil && (i.Name != "web" || i.State != client.Running) {
				err = fmt.Errorf("%+v", i)
			}
			return err
		}, `{"name":"web","state":"Running"}`, "GET /smolvmm/info"},
		{func() error { return c.Pause(ctx) }, "", `PATCH /vm {"state":"Paused"}`},
		{func() error { return c.Resume(ctx) }, "", `PATCH /vm {"state":"Resumed"}`},
		{func() error { return c.Start(ctx) }, "", `PUT /actions {"action_type":"InstanceStart"}`},
		{func() error { return c.Shutdown(ctx) }, "", `PUT /actions {"action_type":"SendCtrlAltDel"}`},
		{func() error { return c.Kill(ctx) }, "", `PUT /smolvmm/kill`},
		{func() error {
			asked, err := c.Stop(ctx, 1500*time.Millisecond)
			if err == nil && !asked {
				err = errors.New("not asked")
			}
			return err
		}, `{"asked":true}`, `PUT /smolvmm/stop {"grace_ms":1500}`},
		{func() error {
			b, err := c.Metrics(ctx)
			if err == nil && string(b) != "smolvmm_info 1\n" {
				err = fmt.Errorf("%q", b)
			}
			return err
		}, "smolvmm_info 1\n", "GET /metrics"},
		{func() error { _, err := c.Console(ctx, 99); return err }, "login:", "GET /smolvmm/console?tail=99"},
		{func() error { _, err := c.Ports(ctx); return err }, `[{"network":"tcp","host":["127.0.0.1:1"],"guest":"2"}]`, "GET /smolvmm/ports"},
		{func() error { _, err := c.Egress(ctx); return err }, `{"interfaces":[{"denied":1}]}`, "GET /smolvmm/egress"},
		{func() error { _, err := c.Flows(ctx, 5); return err }, `[{"protocol":"tcp"}]`, "GET /smolvmm/flows?max=5"},
		{func() error { _, err := c.BootOptions(ctx); return err }, `{"acpi":true}`, "GET /smolvmm/boot"},
		{func() error { return c.SetBootOptions(ctx, client.BootOptions{ACPI: true}) }, ``, `PUT /smolvmm/boot {"acpi":true}`},
		{func() error { _, err := c.MachineConfig(ctx); return err }, `{"vcpu_count":1,"mem_size_mib":64}`, "GET /machine-config"},
		{func() error { return c.SetMachineConfig(ctx, client.MachineConfig{CPUs: 2, MemoryMiB: 64}) }, "",
			`PUT /machine-config {"vcpu_count":2,"mem_size_mib":64,"smt":false,"track_dirty_pages":false}`},
		{func() error { return c.SetBootSource(ctx, client.BootSource{Kernel: "k"}) }, "", `PUT /boot-source {"kernel_image_path":"k"}`},
		{func() error { return c.SetDrive(ctx, client.Drive{ID: "a", Path: "p", Root: true}) }, "",
			`PUT /drives/a {"drive_id":"a","path_on_host":"p","is_root_device":true,"is_read_only":false}`},
		{func() error {
			return c.SetNetworkInterface(ctx, client.NetworkInterface{ID: "e/0", HostDevice: "t"})
		}, "", `PUT /network-interfaces/e%2F0 {"iface_id":"e/0","host_dev_name":"t"}`},
	} {
		answer = call.answer
		if err := call.do(); err != nil || got != call.want {
			t.Errorf("%s: %v, want %s", got, err, call.want)
		}
	}
}

// A refusal is an Error, a machine that is gone ErrGone, an end of patience the
// context's; nonsense is none of them.
func TestErrors(t *testing.T) {
	ctx := context.Background()
	block := make(chan struct{})
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/smolvmm/info":
			<-block
		case "/smolvmm/ports":
			io.WriteString(w, "not JSON")
		case "/smolvmm/kill":
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
		case "/smolvmm/egress":
			w.Write(make([]byte, 17<<20))
		default:
			w.WriteHeader(400)
			json.NewEncoder(w).Encode(map[string]string{"fault_message": "no wings"})
		}
	})
	c := client.New(path)
	var refused *client.Error
	if err := c.Pause(ctx); !errors.As(err, &refused) || refused.Status != 400 || refused.Message != "no wings" || refused.Path != "/vm" {
		t.Errorf("refused: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Info(short); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrGone) {
		t.Errorf("out of time: %v", err)
	}
	close(block)
	why := errors.New("changed my mind")
	gone, giveUp := context.WithCancelCause(ctx)
	giveUp(why)
	if _, err := c.Info(gone); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Ports(ctx); err == nil || errors.Is(err, client.ErrGone) || errors.As(err, &refused) {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := c.Egress(ctx); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too much: %v", err)
	}
	if err := c.Kill(ctx); !errors.Is(err, client.ErrGone) {
		t.Errorf("hung up: %v", err)
	}
	nobody := client.New(filepath.Join(t.TempDir(), "none"))
	if _, err := nobody.Info(ctx); !errors.Is(err, client.ErrGone) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := nobody.Agent(ctx); !errors.Is(err, client.ErrGone) {
		t.Errorf("nobody's agent: %v", err)
	}
	if _, err := nobody.Wait(ctx); !errors.Is(err, client.ErrGone) {
		t.Errorf("nobody's end: %v", err)
	}
	if _, err := c.Agent(ctx); !errors.As(err, &refused) || refused.Status != 400 {
		t.Errorf("refused agent: %v", err)
	}
}

// Events end with the machine, with the context, with the loop, or with a word
// why not.
func TestEventStream(t *testing.T) {
	const ended = `{"seq":2,"event":"ended","exit":{"how":"over","kind":"exit","status":5}}` + "\n"
	// says serves one text, and then goes on or hangs up.
	says := func(text string, on bool) *client.Client {
		return client.New(serve(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
			if on {
				<-r.Context().Done()
			}
		}))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	const created = `{"seq":1,"event":"created"}` + "\n"
	if e, err := says(created+"\n"+ended, true).Wait(ctx); err != nil || e.Status != 5 {
		t.Errorf("Wait: %+v, %v", e, err)
	}
	for e, err := range says(created, true).Events(ctx) { // left at once
		if err != nil || e.Event != client.EventCreated {
			t.Errorf("%+v, %v", e, err)
		}
		break
	}
	short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	defer stop()
	if _, err := says(created, true).Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v", err)
	}
	if _, err := says("{nonsense\n", true).Wait(ctx); err == nil || errors.Is(err, client.ErrGone) {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := says(strings.Repeat("x", 1<<17), true).Wait(ctx); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a line without end: %v", err)
	}
	if _, err := says("", false).Wait(ctx); !errors.Is(err, client.ErrGone) {
		t.Errorf("gone without a word: %v", err)
	}
}

// What was read with the head of the answer is not lost.
func TestAgentStream(t *testing.T) {
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		c, rw, _ := w.(http.Hijacker).Hijack()
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\nfirst words ")
		io.Copy(c, rw)
	})
	conn, err := client.New(path).Agent(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "and an echo")
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "first words and an echo" {
		t.Errorf("%q, %v", b, err)
	}
}

// A process that is not what it seems gets no memory for its answer's head.
func TestEndlessHead(t *testing.T) {
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		defer c.Close()
		_, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n")
		sent := 0
		for line := "X-More: " + strings.Repeat("x", 1000) + "\r\n"; err == nil && sent < 64<<20; sent += len(line) {
			_, err = io.WriteString(c, line)
		}
		if err == nil {
			t.Errorf("%d bytes of a head were read", sent)
		}
	})
	c := client.New(path)
	if _, err := c.Agent(t.Context()); err == nil || !strings.Contains(err.Error(), "head") {
		t.Errorf("a stream: %v", err)
	}
	if _, err := c.Info(t.Context()); err == nil {
		t.Error("an answer was taken")
	}
}
