package pvh

import (
	"errors"
	"strings"
	"testing"
)

func TestCmdline(t *testing.T) {
	devs := []VirtioMMIO{{0x1000, 0xD0000000, 5}, {512, 0xD0001000, 16}}
	const d = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=512@0xd0001000:16"
	for _, c := range []struct{ user, want string }{
		{"", "root=ld0a console=com " + d},
		{"-z", "root=ld0a console=com -z " + d},
		{"root=NAME=x", "console=com root=NAME=x " + d},
		{"ROOT=ld1a", "console=com ROOT=ld1a " + d},
		{"bootdev=ld1", "console=com bootdev=ld1 " + d},
		{"console=ttyS0 root=/dev/vda", "console=ttyS0 root=/dev/vda " + d},
		{"  hello   -v  root=ld0b world ", "console=com -v root=ld0b " + d + " hello world"},
		{"rootfs=x consoles=1 =y", "root=ld0a console=com " + d + " rootfs=x consoles=1 =y"},
		{`foo="a -b root=c" -z`, "root=ld0a console=com -z " + d + ` foo="a -b root=c"`},
		{"quiet -- -x root=no", "root=ld0a console=com " + d + " quiet -- -x root=no"},
	} {
		got, err := Cmdline(c.user, devs)
		if err != nil || got != c.want {
			t.Errorf("Cmdline(%q)\n = %q, %v\nwant %q", c.user, got, err, c.want)
		}
	}
}

func TestCmdlineRefused(t *testing.T) {
	for _, c := range []struct {
		user string
		devs []VirtioMMIO
		says string
	}{
		{"a\x00b", nil, "byte 1 is the control character 0x00"},
		{"a\nb", nil, "0x0a"}, {"a\tb", nil, "0x09"}, {"\x7f", nil, "0x7f"}, {"a\rb", nil, "0x0d"},
		{"virtio_mmio.device=4K@0x1:1", nil, "leave it out"},
		{"xvirtio_mmio.device=1", nil, "leave it out"}, // NetBSD looks for it within words
		{"root=" + strings.Repeat("x", 240), nil, "take 257 bytes, the kernel looks at 255: shorten them by 2"},
		{strings.Repeat("y", 5000), nil, "shorten it by"},
		{"", []VirtioMMIO{{0x1000, 0, 5}}, "must not be 0"},
		{"", []VirtioMMIO{{0x1000, 1, 0}}, "must not be 0"},
	} {
		_, err := Cmdline(c.user, c.devs)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Cmdline(%.40q) = %v, want %q", c.user, err, c.says)
		}
	}
	if _, err := Cmdline("root="+strings.Repeat("x", 238), nil); err != nil {
		t.Errorf("255 bytes that must come first: %v", err)
	}
}

func FuzzCmdline(f *testing.F) {
	for _, s := range []string{"", "-z root=ld0a", `a="b c" -- x`, "console=com root=NAME=x hello", "\"", "é ü"} {
		f.Add(s, uint8(3))
	}
	f.Fuzz(func(t *testing.T, user string, n uint8) {
		devs := make([]VirtioMMIO, n%16)
		for i := range devs {
			devs[i] = VirtioMMIO{0x1000, 0xD0000000 + uint64(i)<<12, 5 + uint32(i)}
		}
		s, err := Cmdline(user, devs)
		if err != nil {
			return
		}
		if len(s) > MaxCmdline || strings.Count(s, "virtio_mmio.device=") != len(devs) {
			t.Fatalf("Cmdline(%q) = %q", user, s)
		}
		if again, err := Cmdline(user, devs); err != nil || again != s {
			t.Fatalf("not the same twice: %q %v", again, err)
		}
		// Every word of the user's is there, as often as they gave it.
		for _, w := range split(user) {
			if !strings.Contains(" "+s+" ", " "+w+" ") {
				t.Fatalf("%q lost from %q", w, s)
			}
		}
	})
}
