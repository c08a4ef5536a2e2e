package kernels

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReleases(t *testing.T) {
	for _, s := range []string{"11.0", "11.0_RC1", "10.99.12", "12.1", "11.0_BETA"} {
		if r, err := ParseRelease(s); err != nil || r.String() != s {
			t.Errorf("ParseRelease(%q) = %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "11", "../x", "11.0/..", "11.0/../../etc", "..", ".", "/etc", "11.0\n", "11.0 ", "11.0%2f..", "v11.0", "11.0_rc1",
		"11.0_RC1/x", "11.0?x", "11.0#x", "11.0\x00", "1111.0", "١١.0", "11.0_" + strings.Repeat("A", 13), "latest", strings.Repeat("1", 1000) + ".0"} {
		_, err := ParseRelease(s)
		if !errors.Is(err, ErrRelease) {
			t.Errorf("ParseRelease(%q) = %v", s, err)
		}
		if _, err := Find(t.TempDir(), s); s != "" && !errors.Is(err, ErrRelease) {
			t.Errorf("Find(%q) = %v", s, err)
		}
	}
	order := []string{"10.1", "10.99.12", "11.0_BETA", "11.0_RC1", "11.0_RC2", "11.0_RC10", "11.0", "11.0.1", "11.1", "12.0"}
	for i := range order {
		for j := range order {
			a, _ := ParseRelease(order[i])
			b, _ := ParseRelease(order[j])
			if c := a.Compare(b); (c < 0) != (i < j) || (c > 0) != (i > j) {
				t.Errorf("%s compared with %s is %d", a, b, c)
			}
		}
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestListAndFind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kernels")
	if l, err := List(dir); err != nil || len(l) != 0 {
		t.Errorf("a cache that is not there: %v, %v", l, err)
	}
	if _, err := Find(dir, ""); !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), "kernel fetch") {
		t.Errorf("Find in no cache: %v", err)
	}
	sum := strings.Repeat("ab", 64)
	put(t, filepath.Join(dir, "10.99.12", Name), "old")
	put(t, filepath.Join(dir, "11.0", Name), "kernel")
	put(t, filepath.Join(dir, "11.0", SumsName), fmt.Sprintf("SHA512 (%s) = %s\n", Name, sum))
	put(t, filepath.Join(dir, "11.0_RC2", Packed), "by hand")
	put(t, filepath.Join(dir, "11.1", Packed+".part"), "not yet whole")
	put(t, filepath.Join(dir, "notes", "x"), "not a release")
	l, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []Kernel{
		{"11.0", filepath.Join(dir, "11.0", Name), 6, sum},
		{"11.0_RC2", filepath.Join(dir, "11.0_RC2", Packed), 7, ""},
		{"10.99.12", filepath.Join(dir, "10.99.12", Name), 3, ""},
	}
	if fmt.Sprint(l) != fmt.Sprint(want) {
		t.Errorf("List:\n%v\nwant\n%v", l, want)
	}
	if k, err := Find(dir, ""); err != nil || k != want[0] {
		t.Errorf("newest: %v, %v", k, err)
	}
	if k, err := Find(dir, "10.99.12"); err != nil || k != want[2] {
		t.Errorf("by release: %v, %v", k, err)
	}
	if _, err := Find(dir, "11.1"); !errors.Is(err, ErrNotCached) {
		t.Errorf("an unfinished one: %v", err)
	}
	if err := Verify(want[0]); !errors.Is(err, ErrChecksum) || !strings.Contains(err.Error(), "kernel fetch 11.0` again") {
		t.Errorf("Verify of a changed kernel: %v", err)
	}
	if err := Verify(want[2]); !errors.Is(err, ErrChecksum) || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("Verify without a digest: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "12.0", Name), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(dir, "12.0"); !errors.Is(err, ErrCache) {
		t.Errorf("a folder in a kernel's place: %v", err)
	}
}

func TestDefaultCache(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/some/where")
	if d, err := CacheDir(); err != nil || d != "/some/where/smolvmm/kernels" {
		t.Errorf("CacheDir() = %q, %v", d, err)
	}
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	if _, err := CacheDir(); !errors.Is(err, ErrCache) || !strings.Contains(err.Error(), "XDG_CACHE_HOME") {
		t.Errorf("CacheDir() without a home: %v", err)
	}
}

func FuzzRelease(f *testing.F) {
	for _, s := range []string{"11.0", "11.0_RC1", "10.99.12", "../x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRelease(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x00") || len(err.Error()) > 512 {
				t.Fatalf("not one short line: %q", err)
			}
			return
		}
		if filepath.Base(s) != s || s == ".." || strings.Trim(s, "0123456789._ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || r.Compare(r) != 0 {
			t.Fatalf("%q was taken for a release", s)
		}
	})
}
