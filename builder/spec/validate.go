package spec

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a description: who runs an image has not read it before.
const (
	maxList    = 4096      // elements: as many arguments and variables as smolinit takes
	maxString  = 128 << 10 // bytes: Linux' MAX_ARG_STRLEN, more fits no program
	maxPath    = 1023      // bytes: PATH_MAX of NetBSD less the NUL
	maxPublish = 256
	maxGroups  = 16       // NGROUPS_MAX, NetBSD's sys/syslimits.h
	maxCPUs    = 32       // what smolvmm boots
	maxMemory  = 64 << 30 // bytes, what smolvmm boots
	minMemory  = 1 << 20
	// MaxDisk is the largest disk, bytes: the FFS writer's bound, with room for a GPT.
	MaxDisk = 1<<40 + 1<<30
	// MaxKernel is the largest kernel, bytes; NetBSD's GENERIC with symbols has 30 MiB.
	MaxKernel = 256 << 20
)

// Validate checks everything, trusting nothing; its errors name the field.
func (img *Image) Validate() error {
	if img.Architecture != "amd64" {
		return fmt.Errorf("architecture %q: smolvmm runs amd64", img.Architecture)
	}
	if img.OS != "netbsd" {
		return fmt.Errorf("os %q: smolvmm runs netbsd", img.OS)
	}
	if img.Created != "" {
		if _, err := time.Parse(time.RFC3339, img.Created); err != nil {
			return fmt.Errorf("created %q: want a time as RFC 3339 has it", img.Created)
		}
	}
	if img.Memory != 0 && (img.Memory < minMemory || img.Memory > maxMemory) {
		return fmt.Errorf("memory: %d bytes: want 1 MiB to 64 GiB", img.Memory)
	}
	if img.CPUs < 0 || img.CPUs > maxCPUs {
		return fmt.Errorf("cpus: %d: want 1 to %d", img.CPUs, maxCPUs)
	}
	if len(img.Publish) > maxPublish {
		return fmt.Errorf("publish: %d ports; at most %d are taken", len(img.Publish), maxPublish)
	}
	if err := printables("publish", img.Publish); err != nil {
		return err
	}
	if img.Tree != "" {
		if err := CheckDigest(img.Tree); err != nil {
			return fmt.Errorf("tree: %w", err)
		}
	}
	if err := img.Kernel.validate(); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if err := img.Disk.validate(); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if err := img.Config.Validate(); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

func (k *Kernel) validate() error {
	switch {
	case k.Digest != "" && k.Release != "":
		return errors.New("a digest and a release: one of them")
	case k.Digest != "":
		if err := CheckDigest(k.Digest); err != nil {
			return err
		}
		if k.Size <= 0 || k.Size > MaxKernel {
			return fmt.Errorf("size %d: want 1 to %d bytes", k.Size, MaxKernel)
		}
		return nil
	case k.Size != 0:
		return errors.New("a size without a digest")
	case k.Release == "":
		return nil
	}
	// The release becomes a folder's name in a cache and a part of a URL.
	if len(k.Release) > 64 || !onlyName(k.Release) ||
		!alnum(k.Release[0]) || strings.Contains(k.Release, "..") {
		return fmt.Errorf("release %q: want letters, digits, dots, hyphens and underscores", k.Release)
	}
	return nil
}

func onlyName(s string) bool {
	for i := range len(s) {
		if !alnum(s[i]) && s[i] != '.' && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return true
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (d *Disk) validate() error {
	if err := CheckDigest(d.Digest); err != nil {
		return err
	}
	if d.Size <= 0 || d.Size > MaxDisk {
		return fmt.Errorf("size %d: want 1 to %d bytes", d.Size, int64(MaxDisk))
	}
	if d.Size%512 != 0 {
		return fmt.Errorf("size %d: want a multiple of 512, the disk's block", d.Size)
	}
	switch d.Layout {
	case LayoutFFS, LayoutGPT, LayoutExt2, LayoutRaw:
	default:
		return fmt.Errorf("layout %q: want ffs, gpt, ext2 or raw", d.Layout)
	}
	return CheckRoot(d.Root)
}

// CheckRoot checks the kernel's root argument: it stands on the kernel's command
// line, where a space would begin an argument of somebody else's.
func CheckRoot(root string) error {
	name, wedge := strings.CutPrefix(root, "NAME=")
	switch {
	case name == "" || len(name) > 64: // a GPT name has 36 UTF-16 units; a device has less
		return fmt.Errorf("root %q: want a device such as ld0a, or NAME= and a wedge's name", root)
	case !onlyName(name):
		return fmt.Errorf("root %q: want letters, digits, dots, hyphens and underscores", root)
	case !wedge && !device(name):
		return fmt.Errorf("root %q: want a device such as ld0a, or NAME= and a wedge's name", root)
	}
	return nil
}

// device is a driver's letters, a unit, and a partition: ld0a, dk0.
func device(s string) bool {
	rest := strings.TrimLeft(s, "abcdefghijklmnopqrstuvwxyz")
	digits := strings.TrimLeft(rest, "0123456789")
	return rest != s && digits != rest && len(s) <= 16 &&
		(digits == "" || len(digits) == 1 && digits[0] >= 'a' && digits[0] <= 'p')
}

// Validate checks a config by itself; its errors name the field.
func (c *Config) Validate() error {
	for _, l := range []struct {
		name string
		list []string
	}{
		{"env", c.Env}, {"entrypoint", c.Entrypoint}, {"cmd", c.Cmd},
		{"exposed_ports", c.ExposedPorts}, {"volumes", c.Volumes},
	} {
		if len(l.list) > maxList {
			return fmt.Errorf("%s: %d elements; at most %d are taken", l.name, len(l.list), maxList)
		}
		for i, s := range l.list {
			if err := text(s); err != nil {
				return fmt.Errorf("%s[%d]: %w", l.name, i, err)
			}
		}
	}
	if len(c.Entrypoint) > 0 && c.Entrypoint[0] == "" {
		return errors.New("entrypoint[0] is empty: it names the program")
	}
	if len(c.Entrypoint) == 0 && len(c.Cmd) > 0 && c.Cmd[0] == "" {
		return errors.New("cmd[0] is empty: it names the program")
	}
	for i, e := range c.Env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || !variable(name) {
			return fmt.Errorf("env[%d]: %q: want NAME=VALUE, the name of letters, digits and underscores", i, e)
		}
	}
	if err := printables("user", []string{c.User}); err != nil {
		return err
	}
	if len(c.User) > 255 || strings.ContainsAny(c.User, " \t/") {
		return fmt.Errorf("user %q: want a name or number, and perhaps a group behind a colon", c.User)
	}
	if len(c.Groups) > maxGroups {
		return fmt.Errorf("groups: %d of them; NetBSD takes %d", len(c.Groups), maxGroups)
	}
	if c.WorkingDir != "" {
		if err := absolute(c.WorkingDir); err != nil {
			return fmt.Errorf("working_dir %w", err)
		}
	}
	if c.StopSignal != "" && (len(c.StopSignal) > 16 || !onlyName(c.StopSignal)) {
		return fmt.Errorf("stop_signal %q: want a name such as SIGTERM, or a number", c.StopSignal)
	}
	for _, p := range c.ExposedPorts {
		if !port(p) {
			return fmt.Errorf("exposed_ports: %q: want a port, and /tcp or /udp", p)
		}
	}
	for _, v := range c.Volumes {
		if err := absolute(v); err != nil {
			return fmt.Errorf("volumes: %w", err)
		}
	}
	if len(c.Labels) > maxList {
		return fmt.Errorf("labels: %d of them; at most %d are taken", len(c.Labels), maxList)
	}
	for k, v := range c.Labels {
		if err := text(k); err != nil || k == "" {
			return fmt.Errorf("labels: the name %q cannot be one", k)
		}
		if err := text(v); err != nil {
			return fmt.Errorf("labels: %q: %w", k, err)
		}
	}
	return c.Healthcheck.validate()
}

func (h *Healthcheck) validate() error {
	if h == nil {
		return nil
	}
	bad := errors.New(`healthcheck: test: want ["NONE"], ["CMD", PROGRAM, …] or ["CMD-SHELL", LINE]`)
	if len(h.Test) == 0 || len(h.Test) > maxList {
		return bad
	}
	for i, s := range h.Test {
		if err := text(s); err != nil {
			return fmt.Errorf("healthcheck: test[%d]: %w", i, err)
		}
	}
	switch h.Test[0] {
	case "NONE":
		if len(h.Test) != 1 {
			return bad
		}
	case "CMD":
		if len(h.Test) < 2 || h.Test[1] == "" {
			return bad
		}
	case "CMD-SHELL":
		if len(h.Test) != 2 {
			return bad
		}
	default:
		return bad
	}
	for _, d := range []time.Duration{h.Interval, h.Timeout, h.StartPeriod} {
		if d < 0 || d != 0 && d < time.Millisecond || d > 24*time.Hour {
			return fmt.Errorf("healthcheck: the time %v: want 1ms to 24h", d)
		}
	}
	if h.Retries < 0 || h.Retries > 1000 {
		return fmt.Errorf("healthcheck: %d retries: want 0 to 1000", h.Retries)
	}
	return nil
}

// text is what a process can be given.
func text(s string) error {
	switch {
	case len(s) > maxString:
		return fmt.Errorf("%d bytes; at most %d are taken", len(s), maxString)
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("a NUL byte")
	case !utf8.ValidString(s):
		// JSON would carry it changed.
		return errors.New("not UTF-8")
	}
	return nil
}

// printables are what stands on one line of a terminal.
func printables(field string, list []string) error {
	for _, s := range list {
		if err := text(s); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }); i >= 0 {
			return fmt.Errorf("%s: %q: a control character", field, s)
		}
	}
	return nil
}

func variable(s string) bool {
	if s == "" || len(s) > 255 || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && s[i] != '_' {
			return false
		}
	}
	return true
}

func absolute(p string) error {
	if len(p) > maxPath || !path.IsAbs(p) || path.Clean(p) != p {
		return fmt.Errorf("%.100q: want an absolute path without . and .., of at most %d bytes", p, maxPath)
	}
	return nil
}

func port(p string) bool {
	number, proto, _ := strings.Cut(p, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == number && (p == number || proto == "tcp" || proto == "udp")
}
