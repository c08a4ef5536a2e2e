package fwcfg

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// prefix is what a user's item begins with; QEMU reserves the other names
// (fw_cfg.rst, "Externally Provided Items").
const prefix = "opt/"

// Item is a named value. The value may be a secret: nothing that prints, logs or
// marshals an Item, or a struct that holds one, shows it.
type Item struct {
	name  string
	value secret
}

// secret hides bytes from package fmt, which looks through pointers and
// unexported fields where it may not call methods, but not into a closure.
type secret func() *[]byte

func hide(b []byte) secret { return func() *[]byte { return &b } }

// bytes is what is hidden; nothing for the zero secret.
func (s secret) bytes() []byte {
	if s == nil {
		return nil
	}
	return *s()
}

// NewItem makes an item with a copy of value. The name is printable ASCII, 55
// bytes at most, and begins with "opt/", by custom followed by a reverse domain.
func NewItem(name string, value []byte) (Item, error) {
	if err := checkName(name); err != nil {
		return Item{}, err
	}
	if len(value) > MaxItem {
		return Item{}, tooBig(name)
	}
	return Item{name, hide(bytes.Clone(value))}, nil
}

// ReadItem makes an item with all that r gives, at most MaxItem bytes.
func ReadItem(name string, r io.Reader) (Item, error) {
	if err := checkName(name); err != nil {
		return Item{}, err
	}
	b := make([]byte, 0, 4096)
	for {
		if len(b) == cap(b) {
			// A buffer outgrown holds a part of the secret: wipe it.
			old := b
			b = append(make([]byte, 0, min(2*cap(b), MaxItem+1)), b...)
			clear(old)
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if len(b) <= MaxItem && err == nil {
			continue
		}
		if len(b) <= MaxItem && errors.Is(err, io.EOF) {
			return Item{name, hide(b)}, nil
		}
		clear(b)
		if len(b) > MaxItem {
			return Item{}, tooBig(name)
		}
		return Item{}, fmt.Errorf("fw_cfg: reading the value of %q: %w", name, err)
	}
}

func tooBig(name string) error {
	return fmt.Errorf("fw_cfg: the value of %q is larger than %d bytes", name, MaxItem)
}

func checkName(name string) error {
	if !strings.HasPrefix(name, prefix) || name == prefix {
		return fmt.Errorf("fw_cfg: name %q must begin with %q and go on", name, prefix)
	}
	if len(name) > MaxName {
		return fmt.Errorf("fw_cfg: name %q is longer than %d bytes", name, MaxName)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("fw_cfg: name %q has a byte that is not printable ASCII", name)
		}
	}
	return nil
}

// Name is the item's name.
func (i Item) Name() string { return i.name }

// Len is the size of the value in bytes.
func (i Item) Len() int { return len(i.value.bytes()) }

// Wipe zeroes the value, and with it that of every copy of the item.
func (i Item) Wipe() {
	if i.value != nil {
		b := i.value()
		clear((*b)[:cap(*b)])
		*b = nil
	}
}

// String names the item and hides its value.
func (i Item) String() string { return fmt.Sprintf("%s (%d bytes, not shown)", i.name, i.Len()) }

// Format is String for every verb of package fmt.
func (i Item) Format(f fmt.State, _ rune) { io.WriteString(f, i.String()) }

// LogValue is String.
func (i Item) LogValue() slog.Value { return slog.StringValue(i.String()) }

// MarshalText is String, for JSON and its like.
func (i Item) MarshalText() ([]byte, error) { return []byte(i.String()), nil }
