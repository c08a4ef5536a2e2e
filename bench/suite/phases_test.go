package suite

import (
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestStartParts(t *testing.T) {
	text := "smolvmm: a warning\n     0.250 ms  begin\n     1.000 ms  run\n     1.500 ms  first console byte\n     9.000 ms  end\n"
	got, err := startParts(4, moments([]byte(text)))
	want := []float64{2.5, 0.25, 0.75, 0.5}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, w := range want {
		if got[i].Value != w {
			t.Errorf("%s: %v, want %v", got[i].Name, got[i].Value, w)
		}
	}
	if _, err := startParts(4, moments([]byte("no timeline\n 1.0 ms  begin\n"))); err == nil {
		t.Error("a timeline without the first byte was taken")
	}
}

func TestExits(t *testing.T) {
	trace := "vcpu0 io write 0x502 (mark) 1 bytes 01\nnoise\nvcpu0 io write 0x3f8 (com1) 1 bytes 61\nvcpu1 io write 0x3f8 (com1) 1 bytes 62\nvcpu0 mmio read 0xfe000000 4 bytes\n"
	if got, want := exits([]byte(trace)), "4; io write 0x3f8 (com1): 2, io write 0x502 (mark): 1, mmio read 0xfe000000: 1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	many := ""
	for i := range 12 {
		many += "vcpu0 io read " + strconv.Itoa(i) + " 1\n"
	}
	if got := exits([]byte(many)); !strings.HasSuffix(got, ", 4 other kinds") {
		t.Error(got)
	}
}

// TestAnswer: an answer counts, a wrong one, none and a program that ends do not.
func TestAnswer(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for _, says := range []string{"x", "y", ""} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 6)
			for n := 0; n < len(b); {
				m, err := c.Read(b[n:])
				if err != nil {
					break
				}
				n += m
			}
			_, _ = c.Write([]byte(says))
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	for i, ok := range []bool{true, false, false} {
		if err := ask(t.Context(), port); (err == nil) != ok {
			t.Errorf("answer %d: %v", i, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := ask(ctx, port); err == nil { // nobody takes it
		t.Error("no answer was taken for one")
	}
	ends := server{"ends", func(string, int) []string { return []string{"/bin/sh", "-c", "echo why >&2; exit 3"} }}
	if _, err := answer(t.Context(), ends, ""); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a program that ends: %v", err)
	}
}
