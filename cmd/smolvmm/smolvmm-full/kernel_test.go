package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels/mirror"
)

// fakeMirror serves a release whose kernel is the demo guest, as NetBSD's does.
func fakeMirror(t *testing.T, release string) *httptest.Server {
	t.Helper()
	k, err := os.ReadFile(clitest.DemoKernel(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(k)
	z.Close()
	const name = "netbsd-MICROVM.gz"
	folder := "/pub/NetBSD/NetBSD-" + release + "/amd64/binary/kernel/"
	mux := http.NewServeMux()
	mux.HandleFunc(folder+"SHA512", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "SHA512 (%s) = %x\n", name, sha512.Sum512(packed.Bytes()))
	})
	mux.HandleFunc(folder+name, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(packed.Bytes()))
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// TestKernelFetch: a kernel is fetched from the mirror that the environment or
// the flag names, listed, and booted where none is named.
func TestKernelFetch(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	if r := invoke(t, nil, "kernel", "list"); r.Status != 0 || r.Out != "" || !strings.Contains(r.Err, "smolvmm kernel fetch gets one") {
		t.Errorf("an empty cache: %+v", r)
	}
	want := filepath.Join(cache, "smolvmm", "kernels", "11.0", "netbsd-MICROVM")
	env := map[string]string{mirror.MirrorVariable: fakeMirror(t, "11.0").URL}
	// Nothing is drawn where standard error is no terminal.
	if r := invoke(t, env, "kernel", "fetch"); r.Status != 0 || r.Out != want+"\n" || r.Err != "" {
		t.Fatalf("%+v, want %s", r, want)
	}
	if r := invoke(t, nil, "kernel", "fetch", "--mirror", fakeMirror(t, "11.1_RC1").URL, "11.1_RC1"); r.Status != 0 {
		t.Fatalf("%+v", r)
	}
	r := invoke(t, nil, "kernel", "list")
	if lines := strings.Split(strings.TrimSpace(r.Out), "\n"); r.Status != 0 || len(lines) != 3 ||
		!strings.HasPrefix(lines[1], "11.1_RC1 ") || !strings.HasPrefix(lines[2], "11.0 ") || !strings.HasSuffix(lines[2], " "+want) {
		t.Errorf("%+v", r)
	}
	clitest.NeedKVM(t)
	c := clitest.Smolvmm(t, "-append", "demo=hello", "-m", "64")
	c.Env = append(c.Env, "XDG_CACHE_HOME="+cache)
	if r := clitest.Finish(t, c); r.Status != 0 || !strings.Contains(r.Out, "demo: ok hello") {
		t.Errorf("%+v", r)
	}
}

// TestKernelFetchFails: one line with the URL and what to do, status 1.
func TestKernelFetchFails(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	for _, c := range []struct {
		mirror string
		want   []string
	}{
		{dead.URL, []string{"connection refused", dead.URL + "/pub/NetBSD/NetBSD-11.0/amd64/binary/kernel/", "put it at "}},
		{fakeMirror(t, "11.9").URL, []string{"NetBSD 11.0 has no netbsd-MICROVM on this mirror"}},
		{"ftp://x", []string{"the mirror must be a plain http or https URL"}},
	} {
		r := invoke(t, map[string]string{mirror.MirrorVariable: c.mirror}, "kernel", "fetch")
		if r.Status != cli.StatusFailed || r.Out != "" || strings.Count(r.Err, "\n") != 1 {
			t.Errorf("%s: %+v", c.mirror, r)
		}
		clitest.MustContain(t, c.mirror, r.Err, c.want...)
	}
}

// TestKernelUsage: bad words are refused before anything is asked for.
func TestKernelUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"kernel"}, "fetch or list?"},
		{[]string{"kernel", "lst"}, "did you mean list?"},
		{[]string{"kernel", "list", "x"}, "kernel list takes no arguments"},
		{[]string{"kernel", "fetch", "9.4"}, "from 11.0 on"},
		{[]string{"kernel", "fetch", "../x"}, "is not a NetBSD release"},
		{[]string{"kernel", "fetch", "11.0", "12.0"}, "one release at a time"},
	} {
		if r := invoke(t, nil, c.args...); r.Status != cli.StatusUsage || r.Out != "" || strings.Count(r.Err, "\n") != 1 || !strings.Contains(r.Err, c.want) {
			t.Errorf("%q: %+v; want %q", c.args, r, c.want)
		}
	}
}

// TestBar: drawn on a terminal, on one line, and ended.
func TestBar(t *testing.T) {
	if b := newBar(&bytes.Buffer{}); b.w != nil {
		t.Error("a bar is drawn where there is no terminal")
	}
	master, slave := clitest.OpenPTY(t)
	defer master.Close()
	defer slave.Close()
	if b := newBar(&cli.LineWriter{W: slave}); b.w == nil {
		t.Error("no bar is drawn on a terminal")
	}
	var out bytes.Buffer
	b := &bar{w: &out}
	b.update(1<<20, 4<<20)
	b.update(2<<20, 4<<20) // too soon to be drawn
	b.update(4<<20, 4<<20)
	b.end()
	if got, want := out.String(), "\r["+strings.Repeat("#", 7)+strings.Repeat(".", 23)+"] 1.0 of 4.0 MiB\r["+strings.Repeat("#", 30)+"] 4.0 of 4.0 MiB\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
