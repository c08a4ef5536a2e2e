package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
)

// Config is what /etc/smolinit.json and the item opt/smolvmm/init.json hold; a
// field that the item gives replaces the file's, and maps are merged. See
// docs/smolinit.md.
type Config struct {
	Argv     []string          `json:"argv"`
	Env      map[string]string `json:"env"`
	Cwd      string            `json:"cwd"`
	UID      uint32            `json:"uid"`
	GID      uint32            `json:"gid"`
	Groups   []uint32          `json:"groups"`
	Hostname string            `json:"hostname"`
	Mounts   []Mount           `json:"mounts"`
	Files    map[string]Place  `json:"files"`
	Secrets  map[string]Place  `json:"secrets"`
	Poweroff string            `json:"poweroff"`      // "exit" (the exit port), "reboot" or "halt"
	Grace    *int              `json:"grace"`         // seconds between SIGTERM and SIGKILL; nil is defaultGrace
	RootRO   bool              `json:"root_readonly"` // leave the root file system as the kernel mounted it
	Quiet    bool              `json:"quiet"`         // say nothing but what is wrong
	Net      *[]Net            `json:"net"`           // nil: DHCP and SLAAC on every VirtIO interface
	Build    *steplog.Step     `json:"build"`         // the command is a step in the making of an image
}

// Mount is a file system to mount before the command runs.
type Mount struct {
	Type    string   `json:"type"`   // tmpfs, ffs, ext2fs, kernfs, procfs, ptyfs
	Source  string   `json:"source"` // the block device of ffs and ext2fs
	Target  string   `json:"target"` // made if it is not there
	Options []string `json:"options"`
	Size    uint64   `json:"size"` // bytes, tmpfs; 0 is no limit
	Mode    Mode     `json:"mode"` // tmpfs
}

// Place says where an item's bytes go.
type Place struct {
	Path string  `json:"path"`
	Mode Mode    `json:"mode"`
	UID  *uint32 `json:"uid"` // nil is the command's
	GID  *uint32 `json:"gid"`
	Env  string  `json:"env"` // secrets: an environment variable instead of a file
}

// Mode is permission bits, an octal string in JSON.
type Mode uint32

// UnmarshalJSON reads "0644".
func (m *Mode) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New(`a mode is an octal string like "0644"`)
	}
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil || v > 0o7777 {
		return fmt.Errorf(`mode %q: want an octal string like "0644"`, s)
	}
	*m = Mode(v)
	return nil
}

// Bounds of a configuration: it comes from the host or the image, and a slip
// there should be told and not exhaust the guest.
const (
	maxConfig    = 1 << 20 // bytes of JSON
	maxArgs      = 4096
	maxEnv       = 4096
	maxMounts    = 64
	maxHostname  = 255 // MAXHOSTNAMELEN less the NUL, sys/param.h
	maxPath      = 1023
	maxGroups    = 16 // NGROUPS_MAX, sys/syslimits.h
	maxGrace     = 3600
	defaultGrace = 10
)

// merge reads a document over c.
func (c *Config) merge(doc []byte, name string) error {
	if len(doc) > maxConfig {
		return fmt.Errorf("%s: %d bytes; at most %d are read", name, len(doc), maxConfig)
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(doc, &given); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// The decoder would reuse the old elements of a slice, with their fields.
	for key, list := range map[string]func(){
		"argv":   func() { c.Argv = nil },
		"groups": func() { c.Groups = nil },
		"mounts": func() { c.Mounts = nil },
		"net":    func() { c.Net = nil },
		"build":  func() { c.Build = nil },
	} {
		if _, ok := given[key]; ok {
			list()
		}
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: something follows the object", name)
	}
	if err := c.check(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *Config) check() error {
	if len(c.Argv) > maxArgs {
		return fmt.Errorf("argv: %d arguments; at most %d are taken", len(c.Argv), maxArgs)
	}
	for i, a := range c.Argv {
		if strings.IndexByte(a, 0) >= 0 {
			return fmt.Errorf("argv[%d]: a NUL byte", i)
		}
	}
	if len(c.Argv) > 0 && c.Argv[0] == "" {
		return errors.New("argv[0] is empty: it names the program")
	}
	if len(c.Env) > maxEnv {
		return fmt.Errorf("env: %d variables; at most %d are taken", len(c.Env), maxEnv)
	}
	for name, value := range c.Env {
		if err := checkVariable(name, value); err != nil {
			return err
		}
	}
	if c.Cwd != "" {
		if err := checkPath("cwd", c.Cwd); err != nil {
			return err
		}
	}
	if len(c.Groups) > maxGroups {
		return fmt.Errorf("groups: %d; at most %d are possible", len(c.Groups), maxGroups)
	}
	if len(c.Hostname) > maxHostname || strings.ContainsFunc(c.Hostname, notHostname) {
		return fmt.Errorf("hostname %q: want at most %d letters, digits, dots and hyphens", c.Hostname, maxHostname)
	}
	if len(c.Mounts) > maxMounts {
		return fmt.Errorf("mounts: %d; at most %d are made", len(c.Mounts), maxMounts)
	}
	for i, m := range c.Mounts {
		if err := m.check(); err != nil {
			return fmt.Errorf("mounts[%d]: %w", i, err)
		}
	}
	if c.Net != nil {
		if len(*c.Net) > maxNets {
			return fmt.Errorf("net: %d interfaces; at most %d are set up", len(*c.Net), maxNets)
		}
		for i := range *c.Net {
			if err := (*c.Net)[i].check(); err != nil {
				return fmt.Errorf("net[%d]: %w", i, err)
			}
		}
	}
	for kind, places := range map[string]map[string]Place{"file": c.Files, "secret": c.Secrets} {
		for name, p := range places {
			if err := p.check(kind, name); err != nil {
				return err
			}
		}
	}
	if !slices.Contains([]string{"", "exit", "reboot", "halt"}, c.Poweroff) {
		return fmt.Errorf("poweroff %q: want exit, reboot or halt", c.Poweroff)
	}
	if c.Build != nil {
		if err := checkStep(c.Build); err != nil {
			return fmt.Errorf("build: %w", err)
		}
	}
	if c.Grace != nil && (*c.Grace < 0 || *c.Grace > maxGrace) {
		return fmt.Errorf("grace %d: want 0 to %d seconds", *c.Grace, maxGrace)
	}
	return nil
}

func notHostname(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-')
}

// checkVariable holds names to what a shell can use (POSIX.1-2017 §8.1).
func checkVariable(name, value string) error {
	ok := name != ""
	for i, r := range name {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		ok = ok && (letter || i > 0 && r >= '0' && r <= '9')
	}
	if !ok {
		return fmt.Errorf("environment variable %q: want a name of letters, digits and underscores", name)
	}
	if strings.IndexByte(value, 0) >= 0 {
		return fmt.Errorf("environment variable %s: its value has a NUL byte", name)
	}
	return nil
}

func checkPath(what, p string) error {
	if !strings.HasPrefix(p, "/") || len(p) > maxPath || strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("%s %q: want an absolute path of at most %d bytes", what, p, maxPath)
	}
	return nil
}

// checkItemName holds the name of a file or secret to a plain file name.
func checkItemName(kind, name string) error {
	ok := name != "" && name[0] != '.'
	for _, r := range name {
		ok = ok && (r == '.' || r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
	}
	if !ok {
		return fmt.Errorf("%s %q: want a name of letters, digits, dots, hyphens and underscores that begins with no dot", kind, name)
	}
	return nil
}

func (p Place) check(kind, name string) error {
	if err := checkItemName(kind, name); err != nil {
		return err
	}
	if p.Path != "" {
		if err := checkPath(kind+" "+name+": path", p.Path); err != nil {
			return err
		}
		if strings.HasSuffix(p.Path, "/") {
			return fmt.Errorf("%s %s: path %q is a directory's", kind, name, p.Path)
		}
	}
	if p.Env == "" {
		return nil
	}
	if kind != "secret" || p.Path != "" {
		return fmt.Errorf("%s %s: env is for a secret that has no path", kind, name)
	}
	return checkVariable(p.Env, "")
}

// fileSystems tells which types there are and whether they need a device.
var fileSystems = map[string]bool{
	"ffs": true, "ext2fs": true,
	"tmpfs": false, "kernfs": false, "procfs": false, "ptyfs": false,
}

// mountFlags are the options (sys/fstypes.h, MNT_*).
var mountFlags = map[string]int{
	"rw": 0, "ro": mntReadOnly, "sync": 0x2, "noexec": 0x4, "nosuid": 0x8, "nodev": 0x10,
	"async": 0x40, "nocoredump": 0x8000, "noatime": 0x4000000, "log": 0x2000000,
}

// Mount flags that smolinit sets itself (sys/fstypes.h).
const (
	mntReadOnly = 0x1
	mntUpdate   = 0x10000
	mntForce    = 0x80000
)

func (m Mount) check() error {
	device, known := fileSystems[m.Type]
	switch {
	case !known:
		return fmt.Errorf("type %q: want tmpfs, ffs, ext2fs, kernfs, procfs or ptyfs", m.Type)
	case device && checkPath("source", m.Source) != nil:
		return checkPath("source", m.Source)
	case !device && m.Source != "":
		return fmt.Errorf("source %q: %s has none", m.Source, m.Type)
	case m.Type != "tmpfs" && (m.Size != 0 || m.Mode != 0):
		return fmt.Errorf("size and mode are for tmpfs, not for %s", m.Type)
	case m.Size > 1<<62:
		return fmt.Errorf("size %d is too large", m.Size)
	}
	if err := checkPath("target", m.Target); err != nil {
		return err
	}
	if path.Clean(m.Target) == "/" {
		return errors.New("target /: the root is the kernel's to mount")
	}
	_, err := m.flags()
	return err
}

func (m Mount) flags() (int, error) {
	flags := 0
	for _, o := range m.Options {
		f, ok := mountFlags[o]
		if !ok {
			return 0, fmt.Errorf("option %q is not known", o)
		}
		flags |= f
	}
	return flags, nil
}

// grace is the time in seconds between SIGTERM and SIGKILL.
func (c *Config) grace() int {
	if c.Grace == nil {
		return defaultGrace
	}
	return *c.Grace
}

// environ is the command's environment, sorted, with what a program expects
// where the configuration does not give it.
func (c *Config) environ() []string {
	env := map[string]string{
		"PATH": "/sbin:/bin:/usr/sbin:/usr/bin:/usr/pkg/sbin:/usr/pkg/bin:/usr/local/sbin:/usr/local/bin",
		"HOME": "/",
		"TERM": "vt220",
	}
	for k, v := range c.Env {
		env[k] = v
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}
