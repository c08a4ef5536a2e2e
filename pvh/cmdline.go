package pvh

import (
	"fmt"
	"strings"
)

const (
	// MaxCmdlineNetBSD is the longest command line NetBSD's buffer holds, in
	// bytes without the NUL (MAX_GUEST_CMDLINE in xen.h, 1,024).
	MaxCmdlineNetBSD = 1023
	// MaxCmdlineLinux is Linux's limit on x86 (COMMAND_LINE_SIZE, 2,048).
	MaxCmdlineLinux = 2047
	// MaxCmdline bounds any command line: it shares a page with start_info.
	MaxCmdline = bootPageSize - startInfoSize - 1

	// netbsdEarly is how much of it NetBSD searches for root=, console= and
	// flags, in bytes (_cmd_line in xen_parse_cmdline, xen_machdep.c).
	netbsdEarly = 255

	deviceArg = "virtio_mmio.device="
)

// VirtioMMIO is a device the guest learns of from its command line.
type VirtioMMIO struct {
	Size uint64 // bytes of its register window
	Base uint64 // guest physical address
	IRQ  uint32 // IOAPIC pin, not 0
}

// String is the device as NetBSD and Linux both read it: <size>@<base>:<irq>.
func (v VirtioMMIO) String() string {
	if v.Size%1024 == 0 {
		return fmt.Sprintf("%s%dK@%#x:%d", deviceArg, v.Size>>10, v.Base, v.IRQ)
	}
	return fmt.Sprintf("%s%d@%#x:%d", deviceArg, v.Size, v.Base, v.IRQ)
}

// Cmdline assembles a kernel command line: first what NetBSD finds only in the
// first 255 bytes (root=, console=, flags), with `root=ld0a console=com` where
// user has none of their own; then the devices; then the rest of user's words
// in their order. What follows a word "--", which is Linux's init's, stays
// together at the end. An error is an *Error with ErrCmdline.
func Cmdline(user string, devices []VirtioMMIO) (string, error) {
	if err := checkText("kernel command line", user); err != nil {
		return "", err
	}
	if strings.Contains(user, deviceArg) {
		return "", fail("", ErrCmdline, "kernel command line: %s is for smolvmm to write, one for each device: leave it out", deviceArg)
	}
	var head, rest []string
	root, console := false, false
	words := split(user)
	for i, w := range words {
		if w == "--" {
			rest = append(rest, words[i:]...)
			break
		}
		switch {
		case hasKey(w, "root") || hasKey(w, "bootdev"):
			root = true
			head = append(head, w)
		case hasKey(w, "console"):
			console = true
			head = append(head, w)
		case strings.HasPrefix(w, "-") || hasKey(w, "ip") || hasKey(w, "nfsroot"):
			head = append(head, w)
		default:
			rest = append(rest, w)
		}
	}
	var line []string
	if !root {
		line = append(line, "root=ld0a")
	}
	if !console {
		line = append(line, "console=com")
	}
	line = append(line, head...)
	if n := len(strings.Join(line, " ")); n > netbsdEarly {
		return "", fail("", ErrCmdline, "kernel command line: root=, console=, ip= and flags take %d bytes, the kernel looks at %d: shorten them by %d", n, netbsdEarly, n-netbsdEarly)
	}
	for _, d := range devices {
		if d.Size == 0 || d.Base == 0 || d.IRQ == 0 {
			return "", fail("", ErrParams, "virtio-mmio device %v: size, base and interrupt must not be 0", d)
		}
		line = append(line, d.String())
	}
	s := strings.Join(append(line, rest...), " ")
	if len(s) > MaxCmdline {
		return "", tooLong(s, "the boot page", MaxCmdline)
	}
	return s, nil
}

// hasKey says whether w is key=…; NetBSD does not mind the case.
func hasKey(w, key string) bool {
	return len(w) > len(key) && w[len(key)] == '=' && strings.EqualFold(w[:len(key)], key)
}

// split cuts s into words at spaces outside double quotes, which stay: that is
// how Linux reads them, and NetBSD has no use for quotes.
func split(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	})
}

// checkText refuses bytes that a command line cannot carry.
func checkText(what, s string) error {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7F {
			return fail("", ErrCmdline, "%s: byte %d is the control character %#02x: only spaces may part words", what, i, s[i])
		}
	}
	return nil
}

// checkLimit holds the line against what the kernel os can take.
func checkLimit(s, os string) error {
	limit, who := MaxCmdline, "the boot page"
	switch os {
	case osNetBSD:
		limit, who = MaxCmdlineNetBSD, "NetBSD"
	case osLinux:
		limit, who = MaxCmdlineLinux, "Linux"
	}
	if len(s) > limit {
		return tooLong(s, who, limit)
	}
	return nil
}

func tooLong(s, who string, limit int) error {
	return fail("", ErrCmdline, "kernel command line of %d bytes: %s takes at most %d: shorten it by %d (-append)", len(s), who, limit, len(s)-limit)
}
