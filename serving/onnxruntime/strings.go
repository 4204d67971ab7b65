package onnxruntime

import (
	"runtime"
	"strings"
	"unsafe"

	atelier "github.com/atelier-edge/atelier"
)

// fillStrings sets the elements of the string tensor v. The library takes them
// zero-terminated, so none can hold a zero byte.
func (l *Library) fillStrings(v handle, elements []string) error {
	size := 0
	for i, s := range elements {
		if strings.IndexByte(s, 0) >= 0 {
			return atelier.Errorf(atelier.Invalid, "holds a zero byte in element %d, which a string of ONNX Runtime cannot", i)
		}
		size += len(s) + 1
	}
	text := make([]byte, 0, size) // never grows, so that addresses into it stay good
	addresses := make([]uintptr, len(elements))
	for i, s := range elements {
		addresses[i] = uintptr(unsafe.Pointer(unsafe.SliceData(text))) + uintptr(len(text))
		text = append(append(text, s...), 0)
	}
	// The library reads the text during the call only.
	err := l.call(fnFillStringTensor, v, uintptr(unsafe.Pointer(unsafe.SliceData(addresses))), uintptr(len(elements)))
	runtime.KeepAlive(text)
	return err
}

// readStrings copies the n elements of the string tensor v.
func (l *Library) readStrings(v handle, n int) ([]string, error) {
	var size uintptr
	if n == 0 {
		return nil, nil
	}
	if err := l.call(fnGetStringTensorDataLength, v, uintptr(unsafe.Pointer(&size))); err != nil {
		return nil, err
	}
	text, offsets := make([]byte, size+1), make([]uintptr, n+1)
	err := l.call(fnGetStringTensorContent, v, uintptr(unsafe.Pointer(&text[0])), size, uintptr(unsafe.Pointer(&offsets[0])), uintptr(n))
	if err != nil {
		return nil, err
	}
	offsets[n] = size
	elements := make([]string, n)
	for i := range elements {
		elements[i] = string(text[offsets[i]:offsets[i+1]])
	}
	return elements, nil
}
