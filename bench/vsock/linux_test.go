package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/linux/streams"
)

func TestFlags(t *testing.T) {
	var o options
	if err := o.parse([]string{"-lab", "-n", "3", "-warm", "0", "-mb", "7", "-trips", "9", "-json", "x"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	// What the lab's run is told is what was asked for here.
	var in options
	if err := in.parse(o.inside(), io.Discard); err != nil {
		t.Fatal(err)
	}
	o.lab, o.linux, o.files, o.json = false, true, labFiles, labJSON
	if in != o {
		t.Errorf("inside: %+v, want %+v", in, o)
	}
	for _, bad := range []string{"-n 0", "-n x", "-mb 0", "-mb 100001", "-trips 0", "-warm -1", "-lab -linux", "more", "-what"} {
		if err := run(t.Context(), strings.Fields(bad), io.Discard, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	var help bytes.Buffer
	if err := o.parse([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-lab") {
		t.Errorf("%v, %s", err, &help)
	}
}

// fake is a guest's services without a guest, of which all fail from call fails on.
func fake(t *testing.T, name string, fails int) subject {
	calls := 0
	return subject{name, func(port uint32) (io.ReadWriteCloser, error) {
		if calls++; fails > 0 && calls >= fails {
			return nil, errors.New("its guest has gone")
		}
		serve := map[uint32]func(io.ReadWriter) error{
			streams.SourcePort: streams.Source, streams.SinkPort: streams.Sink, streams.EchoPort: streams.Echo,
		}[port]
		here, there := net.Pipe()
		go func() {
			if err := serve(there); err != nil {
				t.Errorf("port %d: %v", port, err)
			}
			there.Close()
		}()
		return here, nil
	}}
}

// TestMeasure: values by round for all, but for who fails, who is asked no more.
func TestMeasure(t *testing.T) {
	o := &options{n: 3, warm: 1, mb: 1, trips: 5}
	// Three calls a round: the last of the second round, which is the first that counts, fails.
	fs, err := measure(t.Context(), o, []subject{fake(t, nameOurs, 0), fake(t, nameFC, 6)}, io.Discard)
	if err != nil || len(fs) != 3 {
		t.Fatal(fs, err)
	}
	for i, f := range fs {
		ours, peer := f.Of(nameOurs), f.Of(nameFC)
		if len(ours.Values) != o.n || len(ours.Values.There()) != o.n || ours.Failed != 0 {
			t.Errorf("%s: %+v", f.ID, ours)
		}
		there, failed := 1, 0
		if i == 2 {
			there, failed = 0, 1
		}
		if len(peer.Values) != o.n || len(peer.Values.There()) != there || peer.Failed != failed {
			t.Errorf("%s: %+v", f.ID, peer)
		}
		for _, v := range ours.Values {
			if !(v > 0) || math.IsInf(v, 0) {
				t.Errorf("%s: %v", f.ID, v)
			}
		}
	}
	var set figures.Set
	var b strings.Builder
	for _, f := range fs {
		set.Add(f)
	}
	set.Markdown(&b, nil)
	for _, want := range []string{"smolvmm ÷ it", "its guest has gone", "a byte to a Linux guest's program and back"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, &b)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := measure(ctx, o, nil, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestUnits: MB of a stream and its time come to Gbit/s.
func TestUnits(t *testing.T) {
	o := &options{mb: 25, trips: 3}
	v, err := stream(func(_ io.ReadWriter, n uint64) (time.Duration, error) {
		if n != 25_000_000 {
			t.Errorf("%d bytes", n)
		}
		return 50 * time.Millisecond, nil
	})(o, nil)
	if err != nil || v != 4 {
		t.Errorf("25 MB in 50 ms are %v Gbit/s, %v", v, err)
	}
}

// TestCommands: what the monitors are told of the guest.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	argv, err := smolvmm("/f", dir)
	if line := strings.Join(argv, " "); err != nil || !strings.HasPrefix(line, "/f/smolvmm -kernel /f/vmlinux -initrd /f/initrd -acpi ") || !strings.Contains(line, " -vsock 3,"+socket(dir)+" ") {
		t.Errorf("%s, %v", line, err)
	}
	argv, err = firecracker("/p/firecracker")("/f", dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(argv[len(argv)-1])
	if err != nil || argv[0] != "/p/firecracker" {
		t.Fatal(argv, err)
	}
	var c struct {
		Boot struct {
			Kernel string `json:"kernel_image_path"`
			Initrd string `json:"initrd_path"`
			Args   string `json:"boot_args"`
		} `json:"boot-source"`
		Drives []any `json:"drives"`
		Vsock  struct {
			CID  int    `json:"guest_cid"`
			Path string `json:"uds_path"`
		} `json:"vsock"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if c.Boot.Kernel != "/f/vmlinux" || c.Boot.Initrd != "/f/initrd" || c.Boot.Args != guestArgs || c.Drives == nil || c.Vsock.CID != guestCID || c.Vsock.Path != socket(dir) {
		t.Errorf("%s", b)
	}
}

// TestStart: a machine is there at its guest's word, and not before; one that is
// not says what it said last.
func TestStart(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("NOT RUN: no sh")
	}
	script := func(text string) monitor {
		return monitor{"m", func(_, _ string) ([]string, error) { return []string{sh, "-c", text}, nil }}
	}
	dir := t.TempDir()
	r, err := start(t.Context(), script(`echo hello; echo guest: ok ready; exec sleep 1000`), "", dir, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if r.socket != filepath.Join(dir, "v.sock") {
		t.Error(r.socket)
	}
	r.end()
	for _, c := range []struct {
		script string
		limit  time.Duration
		want   []string
	}{
		{"echo first; for i in 1 2 3 4 5 6 7; do echo; echo line; done; echo panic >&2; exit 3", time.Minute, []string{"exit status 3", "line | panic"}},
		{"exec sleep 1000", time.Millisecond, []string{"not ready after 1ms"}},
	} {
		_, err := start(t.Context(), script(c.script), "", dir, c.limit)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "first") {
				t.Errorf("%s: %v, want %q", c.script, err, want)
			}
		}
	}
	if _, err := start(t.Context(), monitor{"m", func(_, _ string) ([]string, error) { return []string{"/nowhere"}, nil }}, "", dir, time.Minute); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
	c := &console{ready: make(chan struct{})}
	for range 3 {
		if n, err := c.Write(bytes.Repeat([]byte("x"), maxConsole)); n != maxConsole || err != nil || len(c.text) > maxConsole {
			t.Error(n, err, len(c.text))
		}
	}
}
