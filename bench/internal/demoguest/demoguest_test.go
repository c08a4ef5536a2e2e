package demoguest

import (
	"debug/elf"
	"path/filepath"
	"testing"
)

func TestReports(t *testing.T) {
	console := []byte("noise\r\ndemo: ok blkbench qd=1 us=12 x=y\r\ndemo: ok nettcp p50_us=1.5\ndemo: FAIL disk: gone\r\n")
	for _, c := range []struct{ got, want string }{
		{Report(console, "blkbench"), "demo: ok blkbench qd=1 us=12 x=y"},
		{Report(console, "nettcp"), "demo: ok nettcp p50_us=1.5"},
		{Report(console, "net"), ""},
		{Failure(console), "demo: FAIL disk: gone"},
		{Failure(nil), ""},
		{Report([]byte("demo: ok cut off"), "cut"), "demo: ok cut off"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if v, err := Field("demo: ok nettcp p50_us=1.5", "p50_us"); v != 1.5 || err != nil {
		t.Error(v, err)
	}
	for _, bad := range []string{"us", "x", "s"} {
		if v, err := Field("demo: ok blkbench qd=1 us= x=y", bad); err == nil {
			t.Errorf("%s is %v", bad, v)
		}
	}
}

func TestWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "guest.elf")
	if err := Write(file); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
