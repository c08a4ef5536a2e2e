package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/fetch/files"
)

// What servers do wrong is in the tests of kernels and of sets too, whole.

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func content(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// server serves one file, and breaks off each answer after cut bytes of it.
func server(t *testing.T, body []byte, cut int) (url string, ranges *[]string) {
	ranges = new([]string)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*ranges = append(*ranges, r.Header.Get("Range"))
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(&cutter{w, cut}, r, "", time.Time{}, bytes.NewReader(body))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/file", ranges
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestDownloadGoesOn(t *testing.T) {
	want := content(1 << 20)
	url, ranges := server(t, want, 300_000)
	c := New(Options{})
	defer c.Close()
	path := filepath.Join(t.TempDir(), "file")
	var last, total int64
	must(t, c.Download(t.Context(), Request{URL: url, Path: path, Limit: 2 << 20, What: "it", Progress: func(g, n int64) { last, total = g, n }}))
	got, err := os.ReadFile(path + PartSuffix)
	must(t, err)
	if !bytes.Equal(got, want) || last != 1<<20 || total != 1<<20 {
		t.Errorf("%d bytes, %d of %d told", len(got), last, total)
	}
	if fmt.Sprint(*ranges) != "[ bytes=300000- bytes=600000- bytes=900000-]" {
		t.Errorf("ranges %q", *ranges)
	}
	Drop(path)
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestAnotherURL: a part of one file is not taken for a part of another.
func TestAnotherURL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path+PartSuffix, []byte("of another"), 0o644))
	must(t, os.WriteFile(path+ValidatorSuffix, []byte("http://elsewhere.example/file\n\"one\"\n"), 0o644))
	want := content(5000)
	url, ranges := server(t, want, 1<<20)
	c := New(Options{})
	defer c.Close()
	must(t, c.Download(t.Context(), Request{URL: url, Path: path, Limit: 1 << 20}))
	if got, err := os.ReadFile(path + PartSuffix); err != nil || !bytes.Equal(got, want) || fmt.Sprint(*ranges) != "[]" {
		t.Errorf("%d bytes, ranges %q, %v", len(got), *ranges, err)
	}
}

func TestBytes(t *testing.T) {
	url, _ := server(t, content(100), 1<<20)
	c := New(Options{Advice: "ask a friend"})
	defer c.Close()
	if b, err := c.Bytes(t.Context(), url, 100, "it"); err != nil || len(b) != 100 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := c.Bytes(t.Context(), url, 99, "a poem"); !errors.Is(err, ErrServer) || !strings.Contains(err.Error(), "not a poem") {
		t.Errorf("too long: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Bytes(ctx, url, 100, "it"); !errors.Is(err, ErrNetwork) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Bytes(t.Context(), "http://127.0.0.1:1/x", 100, "it"); !errors.Is(err, ErrNetwork) || !strings.HasSuffix(err.Error(), ": without a network, ask a friend") {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := c.Bytes(t.Context(), "http://[::1]:namedport/x", 100, "it"); !errors.Is(err, ErrServer) {
		t.Errorf("a bad URL: %v", err)
	}
}

// TestHTTP: who uses the client directly is as safe from silence.
func TestHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	c := New(Options{Idle: 50 * time.Millisecond})
	defer c.Close()
	resp, err := c.HTTP().Get(s.URL)
	must(t, err)
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); !errors.Is(err, errIdle) || string(b) != "half" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestBase(t *testing.T) {
	if b, err := Base("https://cdn.example/a//", ""); err != nil || b != "https://cdn.example/a" {
		t.Errorf("%q, %v", b, err)
	}
	for _, bad := range []string{"", "cdn.example", "ftp://cdn.example", "file:///etc", "http://me:secret@cdn.example", "http://cdn.example/?q", "http://cdn.example/#f", "http://a b/"} {
		if _, err := Base(bad, "https://cdn.example"); !errors.Is(err, ErrServer) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLockAndWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	unlock, err := files.Lock(dir)
	must(t, err)
	if _, err := files.Lock(dir); !errors.Is(err, files.ErrBusy) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	unlock, err = files.Lock(dir)
	must(t, err)
	unlock()
	broken := errors.New("broken")
	if err := files.WriteFile(dir, "f", func(w io.Writer) error { io.WriteString(w, "half"); return broken }); err != broken {
		t.Errorf("a fill that fails: %v", err)
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) > 0 {
		t.Errorf("left: %v, %v", e, err)
	}
	must(t, files.WriteFile(dir, "f", func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err }))
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "whole" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestRedirectNeverLeavesTLS(t *testing.T) {
	https, _ := http.NewRequest("GET", "https://example.org/", nil)
	plain, _ := http.NewRequest("GET", "http://example.org/", nil)
	if noDowngrade(plain, []*http.Request{https}) == nil {
		t.Error("https may lead to http")
	}
	if err := noDowngrade(https, []*http.Request{plain}); err != nil {
		t.Error(err)
	}
}

func FuzzSums(f *testing.F) {
	hash := strings.Repeat("0123456789abcdef", 8)
	f.Add([]byte("SHA512 (netbsd-GENERIC.gz) = " + strings.Repeat("f", 128) + "\nSHA512 (netbsd-MICROVM.gz) = " + hash + "\n"))
	f.Add([]byte("MD5 (netbsd-MICROVM.gz) = 00\nSHA512 (netbsd-MICROVM.gz) = " + hash[1:] + "\nSHA512 () = \n"))
	f.Add([]byte("SHA512 (a) = " + hash + "\r\nSHA512 (a) = " + strings.Repeat("0", 128)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, sum := range files.ParseSums(b) {
			if len(sum) != 128 || strings.ToLower(sum) != sum || strings.Contains(name, "\n") {
				t.Fatalf("%q: %q", name, sum)
			}
		}
	})
}
