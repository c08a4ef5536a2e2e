package kernels

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
)

func TestBackports(t *testing.T) {
	const deb822 = `# a comment
Types: deb
URIs: http://mirror.test/security
Suites: bookworm-security
Components: main
Signed-By: /k.gpg

Types: deb
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
`
	const list = "deb-src http://src.test/debian bookworm main\n" +
		"deb [arch=amd64 signed-by=/k.gpg,/l.gpg] http://one.test/debian bookworm main # the main one\n"
	for _, c := range []struct {
		name    string
		files   map[string]string
		text    string
		present bool
		bad     bool
	}{
		{
			name:  "deb822",
			files: map[string]string{"/etc/apt/sources.list.d/debian.sources": deb822},
			text: "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm-backports\nComponents: main\n" +
				"Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n -----END PGP PUBLIC KEY BLOCK-----\n",
		},
		{
			name:  "one line",
			files: map[string]string{"/etc/apt/sources.list": list},
			text:  "Types: deb\nURIs: http://one.test/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg /l.gpg\n",
		},
		{
			name: "there already",
			files: map[string]string{
				"/etc/apt/sources.list":          list,
				"/etc/apt/sources.list.d/b.list": "deb http://one.test/debian bookworm-backports main\n",
			},
			present: true,
		},
		{
			name: "disabled",
			files: map[string]string{
				"/etc/apt/sources.list.d/b.sources": "Enabled: no\nTypes: deb\nURIs: http://x.test\nSuites: bookworm\nComponents: main\n",
				"/etc/apt/sources.list.d/c.list~":   list,
			},
			bad: true,
		},
	} {
		text, present, err := Backports(c.files, "bookworm")
		if text != c.text || present != c.present || (err != nil) != c.bad {
			t.Errorf("%s: %q, %v, %v; want %q, %v", c.name, text, present, err, c.text, c.present)
		}
	}
}

func TestOutputs(t *testing.T) {
	for in, want := range map[string]int{
		"qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u18\n": 7,
		"  Candidate: 1:10.0.2+ds-2+deb13u1~bpo12+1\n":                                10,
		"  Candidate: 10.1.0-1\n":                                                     10,
		"  Candidate: (none)\n":                                                       0,
		"":                                                                            0,
	} {
		if got := candidateMajor(in); got != want {
			t.Errorf("candidateMajor(%q) = %d, want %d", in, got, want)
		}
	}
	if v, major, err := parseVersion("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"); v != "10.0.2" || major != 10 || err != nil {
		t.Errorf("parseVersion: %s, %d, %v", v, major, err)
	}
	if _, _, err := parseVersion("something else"); err == nil {
		t.Error("no version was found where there is none")
	}
	if got := firstDepends("linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n"); got != "linux-image-6.1.0-1-cloud-amd64" {
		t.Errorf("firstDepends = %q", got)
	}
}

func TestFind(t *testing.T) {
	cache := t.TempDir()
	if _, err := Find(cache, "cloud"); !errors.Is(err, ErrSetup) {
		t.Errorf("an empty cache: %v, want the advice to set up", err)
	}
	if _, err := Find(cache, "other"); err == nil || errors.Is(err, ErrSetup) {
		t.Errorf("an unknown kernel: %v", err)
	}
	dir := filepath.Join(cache, "cloud")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, metaName), []byte(`{"Release":"6.1","Image":"boot/vmlinux","Modules":"lib/modules/6.1"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := Find(cache, "cloud")
	if err != nil || k.ImagePath() != dir+"/boot/vmlinux" || k.ModulePath("a.ko") != dir+"/lib/modules/6.1/a.ko" {
		t.Errorf("Find: %+v, %v", k, err)
	}

	// Where the emulator and the kernel are there, setup changes nothing and says so.
	_, _, err = CheckQEMU()
	if _, errDepmod := depmod(); errors.Join(err, errDepmod) != nil {
		t.Skipf("SKIPPED, setup was not tested: %v", errors.Join(err, errDepmod))
	}
	var said strings.Builder
	if err := Setup(context.Background(), &said, cache, "cloud"); err != nil || !strings.Contains(said.String(), "kernel 6.1 is in") {
		t.Errorf("Setup: %q, %v", said.String(), err)
	}
}

// bzImage makes a boot image around a compressed kernel.
func bzImage(payload []byte, size uint32) []byte {
	b := make([]byte, 1024)
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(b[0x248:], 16)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)+4))
	b = append(b, make([]byte, 16)...)
	b = append(b, payload...)
	return binary.LittleEndian.AppendUint32(b, size)
}

func TestVmlinux(t *testing.T) {
	var hdr bytes.Buffer
	if err := binary.Write(&hdr, binary.LittleEndian, elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Phentsize: 56, Shentsize: 64,
	}); err != nil {
		t.Fatal(err)
	}
	kernel := append(hdr.Bytes(), bytes.Repeat([]byte("kernel "), 10000)...)
	compress := func(w io.WriteCloser, b *bytes.Buffer) []byte {
		if _, err := w.Write(kernel); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	var zb, lb bytes.Buffer
	z := compress(gzip.NewWriter(&zb), &zb)
	lw := lz4.NewWriter(&lb)
	if err := lw.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	l := compress(lw, &lb)
	size := uint32(len(kernel))
	for _, c := range []struct {
		name string
		in   []byte
		bad  string
	}{
		{"gzip", bzImage(z, size), ""},
		{"lz4", bzImage(l, size), ""},
		{"not a bzImage", kernel, "not a bzImage"},
		{"cut", bzImage(l, size)[:1100], "payload at"},
		{"unknown compression", bzImage([]byte("whatever"), size), "none of"},
		{"not what it says", bzImage(l, size+1), "decompressing"},
		{"too large", bzImage(l, 1<<31), "says it has"},
		{"empty", bzImage(nil, 0), "payload at"},
	} {
		got, err := Vmlinux(c.in)
		switch {
		case c.bad == "" && (err != nil || !bytes.Equal(got, kernel)):
			t.Errorf("%s: %d bytes, %v", c.name, len(got), err)
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.bad)
		}
	}
}
