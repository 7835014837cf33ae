package handover

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

const (
	messageBytesMax      = 96 * 1024 // a delivery, the largest message
	smallMessageBytesMax = 8 * 1024  // every other
	jsonDepthMax         = 32
)

func malformed(what, why string) *Error {
	return rejected(CodeMessageMalformed, "the "+what+" was refused", why)
}

func tooLarge(what string, found, allowed int) *Error {
	return rejected(CodeMessageTooLarge, "the "+what+" was refused",
		fmt.Sprintf("it has %d bytes, allowed are %d", found, allowed))
}

// strictObject decodes one JSON object of at most limit bytes.
//
// Refused are duplicate keys, invalid UTF-8, deep nesting and bytes after the object: two readings of one message would
// be two messages. Numbers stay json.Number.
func strictObject(body []byte, limit int, what string) (map[string]any, error) {
	if len(body) > limit {
		return nil, tooLarge(what, len(body), limit)
	}
	// json.Valid looks at the whole body, so that the tokens below cannot end before it does.
	if !utf8.Valid(body) || !json.Valid(body) {
		return nil, malformed(what, "it is not strict JSON")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	value, err := readValue(decoder, 0)
	if err != nil {
		return nil, malformed(what, "it is not strict JSON ("+err.Error()+")")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, malformed(what, "it is not a JSON object")
	}
	return object, nil
}

func readValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, errors.New("syntax") // its own text could quote the input, and the input can hold secrets
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth >= jsonDepthMax {
		return nil, errors.New("nested too deep")
	}
	if delim == '[' {
		list := []any{}
		for decoder.More() {
			item, err := readValue(decoder, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		_, err = decoder.Token()
		return list, err
	}
	object := map[string]any{}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, errors.New("syntax")
		}
		name := key.(string)
		if _, twice := object[name]; twice {
			return nil, errors.New("a key occurs twice")
		}
		if object[name], err = readValue(decoder, depth+1); err != nil {
			return nil, err
		}
	}
	_, err = decoder.Token()
	return object, err
}

// decodeBase64 decodes standard base64 with padding in its one canonical spelling.
func decodeBase64(text string) ([]byte, error) {
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	// The decoder passes over line breaks, which are another spelling.
	if err != nil || base64.StdEncoding.EncodedLen(len(data)) != len(text) {
		return nil, errors.New("a binary value is not canonical base64")
	}
	return data, nil
}
