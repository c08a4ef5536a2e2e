package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// maxBody is the longest body of a request, in bytes: Firecracker's own limit
// (HTTP_MAX_PAYLOAD_SIZE).
const maxBody = 51200

// maxDepth bounds how deeply the JSON of a request is nested; the deepest that
// means something has 3 levels.
const maxDepth = 8

// decode reads a JSON object into out, a pointer to a struct, strictly as
// Firecracker does: every field must be known, spelled as the schema has it and
// there once, the fields in required must be there, and nothing may follow.
func decode(body []byte, out any, required ...string) error {
	keys, err := checkObject(body, reflect.TypeOf(out).Elem())
	if err == nil {
		for _, k := range required {
			if !keys[k] {
				err = fmt.Errorf("missing field `%s`", k)
				break
			}
		}
	}
	if err == nil {
		err = json.Unmarshal(body, out)
	}
	if err == nil {
		return nil
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		err = fmt.Errorf("field `%s`: a %s cannot be a %v", wrong.Field, wrong.Value, wrong.Type)
	}
	return badf("An error occurred when deserializing the json body of a request: %w.", err)
}

// checkObject walks the tokens of an object beside the struct that it is for, and
// gives the object's keys.
func checkObject(body []byte, t reflect.Type) (map[string]bool, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if tok, err := d.Token(); err != nil {
		return nil, cut(err)
	} else if tok != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	keys, err := walkObject(d, t, 1)
	if err != nil {
		return nil, cut(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing characters")
	}
	return keys, nil
}

// cut names the end of a body that is too short.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("EOF while parsing a value")
	}
	return err
}

// walkObject reads up to the end of an object whose beginning has been read.
func walkObject(d *json.Decoder, t reflect.Type, depth int) (map[string]bool, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	fields := fieldsOf(t)
	keys := map[string]bool{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := tok.(string)
		f, known := fields[key]
		switch {
		case !known:
			return nil, fmt.Errorf("unknown field `%.64s`, expected one of %s", key, namesOf(t))
		case keys[key]:
			return nil, fmt.Errorf("duplicate field `%s`", key)
		}
		keys[key] = true
		if err := walkValue(d, f, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return keys, err
}

// walkValue reads a value for something of type t.
func walkValue(d *json.Decoder, t reflect.Type, depth int) error {
	tok, err := d.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('{'):
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return fmt.Errorf("an object cannot be a %v", t)
		}
		_, err = walkObject(d, t, depth+1)
	case json.Delim('['):
		// No request has a list.
		return errors.New("a list is nowhere expected")
	}
	return err
}

// fieldsOf gives the JSON names of a struct's fields and their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out[name] = t.Field(i).Type
	}
	return out
}

func namesOf(t reflect.Type) string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, "`"+name+"`")
	}
	return strings.Join(names, ", ")
}
