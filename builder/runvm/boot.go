package runvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
	"github.com/smolvmm/smolvmm/builder/toolbox/devnodes"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/vmm"
)

// booting is a tree that a kernel boots from, and what of it is not the step's.
type booting struct {
	tree   *tree.Tree
	init   string   // where the image's own init is, "" if it has none
	remove []string // what was put in, in the order of its removal
}

// initPath is where NetBSD's kernel looks for its first process (sys/kern/init_main.c).
const initPath = "/sbin/init"

// bootable gives a copy of the step's tree that boots into smolinit. The image's own
// init is put aside under another name, and smolinit puts it back: the command
// sees the image as it is.
func bootable(root *tree.Tree, init tree.Content) (*booting, error) {
	b := &booting{tree: root.Clone()}
	dir, made, err := b.dir("/sbin")
	if err != nil {
		return nil, err
	}
	if made {
		b.remove = append(b.remove, dir)
	}
	own := tree.NewFile(0o555, init)
	place := path.Join("/", dir, "init")
	if old, err := b.tree.Lookup(place); err == nil {
		aside := place + ".smolvmm"
		for n := 0; ; n++ { // a name that nobody has
			if _, err := b.tree.Lookup(aside); errors.Is(err, fs.ErrNotExist) {
				break
			}
			aside = fmt.Sprintf("%s.smolvmm%d", place, n)
		}
		if err := b.tree.Put(aside, old); err != nil {
			return nil, err
		}
		b.init = aside
	} else {
		b.remove = append([]string{initPath}, b.remove...)
	}
	if err := b.tree.Put(place, own); err != nil {
		return nil, err
	}
	// Without these two not even smolinit starts; it makes what else is missing.
	for _, d := range []struct {
		name         string
		perm         uint16
		major, minor uint32
	}{{"console", 0o600, 0, 0}, {"null", 0o666, 2, 2}} {
		// A /dev that was not there stays for the step; it is no change of the step's.
		dev, _, err := b.dir("/dev")
		if err != nil {
			return nil, err
		}
		name := path.Join("/", dev, d.name)
		if _, err := b.tree.Lookup(name); err == nil {
			continue
		}
		if err := b.tree.Put(name, &tree.Node{Kind: tree.CharDevice, Perm: d.perm, Major: d.major, Minor: d.minor}); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// dir gives the real place of a directory, which is made where nothing is.
func (b *booting) dir(name string) (at string, made bool, err error) {
	real, n, err := b.tree.Resolve(name)
	switch {
	case err == nil && n.Kind == tree.Dir:
		return real, false, nil
	case err == nil:
		return "", false, fmt.Errorf("the image cannot boot for a step: %s is a %v and not a directory", name, n.Kind)
	}
	if _, err := b.tree.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("the image cannot boot for a step: %s leads nowhere", name)
	}
	return name, true, b.tree.Put(name, tree.NewDir(0o755))
}

// initDoc is smolinit's document (docs/smolinit.md), as far as a step has one.
type initDoc struct {
	Argv    []string          `json:"argv"`
	Env     map[string]string `json:"env,omitempty"`
	Cwd     string            `json:"cwd,omitempty"`
	UID     uint32            `json:"uid,omitempty"`
	GID     uint32            `json:"gid,omitempty"`
	Groups  []uint32          `json:"groups,omitempty"`
	Secrets map[string]place  `json:"secrets,omitempty"`
	Net     *[]struct{}       `json:"net,omitempty"`
	Quiet   bool              `json:"quiet"`
	Build   steplog.Step      `json:"build"`
}

type place struct {
	Path string  `json:"path,omitempty"`
	Mode string  `json:"mode,omitempty"`
	UID  *uint32 `json:"uid,omitempty"`
	GID  *uint32 `json:"gid,omitempty"`
	Env  string  `json:"env,omitempty"`
}

// secretsDir is on a tmpfs in a step's machine.
const secretsDir = "/run/secrets"

// logMinor is the raw disk ld1d's minor number.
const logMinor = 1*devnodes.Partitions + devnodes.WholeDisk

// document gives smolinit's document and the items that hold the secrets, which are
// the caller's to wipe; an error's are wiped.
func document(step builder.RunStep, b *booting, size, output int64) (doc initDoc, items []vmm.Item, err error) {
	defer func() {
		if err != nil {
			wipe(items)
		}
	}()
	doc = initDoc{
		Argv: step.Argv, Env: map[string]string{}, Cwd: step.Cwd, UID: step.UID, GID: step.GID, Groups: step.Groups,
		Secrets: map[string]place{}, Quiet: true,
		Build: steplog.Step{Log: logMinor, Size: size, Output: output, Init: b.init, Remove: b.remove, Links: map[string]string{}},
	}
	if len(step.Argv) == 0 {
		return doc, items, errors.New("the step has no command")
	}
	if !step.Network {
		doc.Net = &[]struct{}{}
	}
	for _, e := range step.Env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			return doc, items, fmt.Errorf("the environment of the step: %q is not NAME=VALUE", e)
		}
		doc.Env[name] = value
	}
	add := func(s builder.Secret, p place) error {
		// Names of items are short and plain; an ID may be neither.
		name := fmt.Sprintf("s%d", len(items))
		it, err := vmm.NewItem("opt/smolvmm/secret/"+name, s.Data)
		if err != nil {
			return fmt.Errorf("secret %s: %w", s.ID, err)
		}
		items = append(items, it)
		doc.Secrets[name] = p
		return nil
	}
	for _, s := range step.Secrets {
		if s.Env != "" {
			if err := add(s, place{Env: s.Env}); err != nil {
				return doc, items, err
			}
		}
		if s.Path == "" {
			continue
		}
		at := path.Clean("/" + s.Path)
		if path.Dir(at) != secretsDir {
			// A link outside the tmpfs leads to it: a secret is on no disk.
			real := fmt.Sprintf("%s/.smolvmm.s%d", secretsDir, len(items))
			doc.Build.Links[at] = real
			at = real
		}
		p := place{Path: at, UID: &s.UID, GID: &s.GID}
		if s.Mode != 0 {
			p.Mode = fmt.Sprintf("%04o", s.Mode)
		}
		if err := add(s, p); err != nil {
			return doc, items, err
		}
	}
	return doc, items, nil
}

// items gives all that a step's machine finds at its configuration port.
func items(step builder.RunStep, b *booting, size, output int64) ([]vmm.Item, error) {
	doc, list, err := document(step, b, size, output)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(doc)
	if err == nil {
		var it vmm.Item
		if it, err = vmm.NewItem("opt/smolvmm/init.json", text); err == nil {
			return append(list, it), nil
		}
	}
	wipe(list)
	return nil, err
}

// wipe zeroes the values of items that no machine needs any more.
func wipe(items []vmm.Item) {
	for _, it := range items {
		it.Wipe()
	}
}
