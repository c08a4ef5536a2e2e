package image

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

func TestParseLdd(t *testing.T) {
	for _, c := range []struct {
		name, out string
		want      []string
		bad       string
	}{
		{
			name: "usual",
			out: "\tlinux-vdso.so.1 (0x00007ffd3a5f2000)\n" +
				"\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f4a5c3e0000)\n" +
				"\tlibodd name.so => /opt/a dir/libodd name.so (0x00007f4a5c3e0000)\n" +
				"\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f4a5c1ff000)\n" +
				"\t/lib64/ld-linux-x86-64.so.2 (0x00007f4a5c412000)\n",
			want: []string{"/lib/x86_64-linux-gnu/libz.so.1", "/opt/a dir/libodd name.so", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"},
		},
		{name: "static", out: "\tstatically linked\n"},
		{name: "twice", out: "\ta => /a (0x1)\n\tb => /a (0x1)\n", want: []string{"/a"}},
		{name: "missing", out: "\tlibx.so.9 => not found\n", bad: "libx.so.9"},
	} {
		got, err := ParseLdd(c.out)
		if !slices.Equal(got, c.want) || (err != nil) != (c.bad != "") || (err != nil && !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("%s: %q, %v; want %q, error with %q", c.name, got, err, c.want, c.bad)
		}
	}
}

func TestModuleOrder(t *testing.T) {
	const dep = `kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko
kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko kernel/virt/lib/irqbypass.ko
kernel/virt/lib/irqbypass.ko:
kernel/fs/ufs/ufs.ko.xz:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/virtio_console.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
`
	d, err := ParseModules(dep, "kernel/fs/ext4/ext4.ko\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names []string
		want  string // base names; empty: an error
	}{
		{[]string{"kvm_amd"}, "irqbypass.ko kvm.ko kvm-amd.ko"},
		{[]string{"kvm-amd", "kvm"}, "irqbypass.ko kvm.ko kvm-amd.ko"},
		{[]string{"virtio_pci", "virtio_console"}, "virtio_ring.ko virtio.ko virtio_pci.ko virtio_console.ko"},
		{[]string{"ext4", "ufs"}, "ufs.ko.xz"},
		{[]string{"nope"}, ""},
	} {
		got, err := d.Order(c.names)
		for i := range got {
			got[i] = filepath.Base(got[i])
		}
		if strings.Join(got, " ") != c.want || (err != nil) != (c.want == "") {
			t.Errorf("Order(%q) = %q, %v; want %q", c.names, got, err, c.want)
		}
	}
	if _, err := ParseModules("no colon here\n", ""); err == nil {
		t.Error("a line without a colon was accepted")
	}
}

func TestMergedUsr(t *testing.T) {
	for in, want := range map[string]string{
		"/bin/sh": "/usr/bin/sh", "/lib64/ld.so": "/usr/lib64/ld.so", "/usr/lib/x": "/usr/lib/x", "/libx/y": "/libx/y", "/lib": "/lib",
	} {
		if got := MergedUsr(in); got != want {
			t.Errorf("MergedUsr(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, perm fs.FileMode) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), perm); err != nil {
			t.Fatal(err)
		}
		return p
	}
	put("d/a", "alpha", 0o600)
	put("d/sub/b", "", 0o755)
	put("d/.git/config", "secret", 0o600)
	shrinks := put("shrinks", "0123456789", 0o644)
	if err := os.Symlink("a", filepath.Join(dir, "d", "link")); err != nil {
		t.Fatal(err)
	}

	inner, tree := NewTree(), NewTree()
	if err := inner.Path(filepath.Join(dir, "d"), "/data"); err != nil {
		t.Fatal(err)
	}
	inner.Dir("/tmp", fs.ModeSticky|0o777)
	inner.Bytes("/x", []byte("first"), 0o644)
	inner.Bytes("/x", []byte("second!"), 0o644)
	if err := inner.File(shrinks, "/shrinks"); err != nil {
		t.Fatal(err)
	}
	if got := inner.Size(); got != 5+1+7+10 {
		t.Errorf("size %d, want 23: the files and the link's target", got)
	}
	tree.CharDev("/dev/null", 0o666, 1, 3)
	tree.Under("/guest", inner)
	if err := os.Truncate(shrinks, 3); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tree.Write(&b); err != nil {
		t.Fatal(err)
	}
	recs, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(b.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{".": true}
	var got []string
	for _, r := range recs {
		if r.Name == cpio.Trailer {
			continue
		}
		if !seen[filepath.Dir(r.Name)] {
			t.Errorf("%s comes before its folder", r.Name)
		}
		seen[r.Name] = true
		text := ""
		if r.ReaderAt != nil && r.FileSize > 0 {
			p := make([]byte, r.FileSize)
			if _, err := r.ReadAt(p, 0); err != nil {
				t.Fatal(err)
			}
			text = string(p)
		}
		got = append(got, strings.Join([]string{r.Name, modeString(r.Mode), text}, " "))
	}
	want := []string{
		"dev 40755 ", "dev/null 20666 ", "guest 40755 ", "guest/data 40755 ", "guest/data/a 100600 alpha", "guest/data/link 120777 a",
		"guest/data/sub 40755 ", "guest/data/sub/b 100755 ", "guest/shrinks 100644 012\x00\x00\x00\x00\x00\x00\x00", "guest/tmp 41777 ", "guest/x 100644 second!",
	}
	if !slices.Equal(got, want) {
		t.Errorf("archive:\n%q\nwant:\n%q", got, want)
	}
	if n, err := FolderSize(filepath.Join(dir, "d"), 100); n < 5 || n > 6 || err != nil {
		t.Errorf("FolderSize %d, %v; want 5 and the link", n, err)
	}
}

func modeString(m uint64) string {
	const digits = "01234567"
	var s []byte
	for ; m > 0; m >>= 3 {
		s = append([]byte{digits[m&7]}, s...)
	}
	return string(s)
}

func TestProgram(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("SKIPPED: no sh on this machine")
	}
	libs, err := Libraries(sh)
	if err != nil {
		t.Fatal(err)
	}
	tree := NewTree()
	if err := tree.Program(sh, "/usr/bin/sh"); err != nil {
		t.Fatal(err)
	}
	for _, l := range append(libs, "/usr/bin/sh") {
		if !tree.Has(MergedUsr(l)) {
			t.Errorf("%s is not in the tree", l)
		}
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tree.Program(script, "/s"); err == nil || !strings.Contains(err.Error(), "ELF") {
		t.Errorf("a script: %v, want an error about ELF", err)
	}
}
