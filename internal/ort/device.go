package ort

// #include "device.h"
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
)

// Device is an accelerator with the memory that all sessions on it share. Copies take turns with runs where the
// provider cannot do two things at a time: on webgpu, a copy during a run corrupts or crashes.
type Device struct {
	name, memory string
	id           int
	turn         *sync.Mutex // the provider's; nil where it needs none

	toDevice, toHost, held atomic.Int64
}

// DeviceStats counts bytes since the process began.
type DeviceStats struct {
	// ToDevice and ToHost were copied: the tensors in the process's memory that runs took and gave, and copies. What
	// ONNX Runtime moves within a run, between nodes of two providers, is not counted.
	ToDevice, ToHost int64
	// Held is what tensors take on the device now.
	Held int64
}

// Name is the execution provider's, with the number of the device.
func (d *Device) Name() string { return fmt.Sprintf("%s:%d", d.name, d.id) }

// Stats may be called at any time.
func (d *Device) Stats() DeviceStats {
	return DeviceStats{ToDevice: d.toDevice.Load(), ToHost: d.toHost.Load(), Held: d.held.Load()}
}

var devices struct {
	sync.Mutex
	list []*Device
}

// AllDevices adds up what the devices that sessions were opened on count.
func AllDevices() (all DeviceStats) {
	devices.Lock()
	defer devices.Unlock()
	for _, d := range devices.list {
		s := d.Stats()
		all.ToDevice, all.ToHost, all.Held = all.ToDevice+s.ToDevice, all.ToHost+s.ToHost, all.Held+s.Held
	}
	return all
}

// deviceOf is the one Device that a provider's sessions run on; nil if it has no tensors in a memory of its own.
func deviceOf(p Provider) *Device {
	if !p.Can().DeviceTensors {
		return nil
	}
	id := 0
	for _, key := range []string{"deviceId", "device_id"} {
		if n, err := strconv.Atoi(p.options[key]); err == nil {
			id = n
		}
	}
	devices.Lock()
	defer devices.Unlock()
	for _, d := range devices.list {
		if d.name == p.Name() && d.id == id {
			return d
		}
	}
	d := &Device{name: p.Name(), memory: p.Memory(), id: id, turn: p.turn()}
	devices.list = append(devices.list, d)
	return d
}

// take waits for the device's turn, if it has one, and returns what ends it.
func (d *Device) take() (end func()) {
	if d.turn == nil {
		return func() {}
	}
	d.turn.Lock()
	return d.turn.Unlock
}

// deviceValue is a tensor in a device's memory. The embedded Value, a tensor of one element, supplies DataType, whose
// type only the binding can write.
type deviceValue struct {
	ort.Value
	session *Session
	t       onnx.DType
	dims    []int
	raw     unsafe.Pointer // OrtValue; nil once freed
	inner   ort.ValueInternalData
	of      *deviceValue // whose memory it is; nil if its own
	aliases []*deviceValue
}

func init() {
	t := reflect.TypeFor[ort.ValueInternalData]()
	if t.NumField() != 1 || t.Field(0).Name != "ortValue" || t.Field(0).Type.Kind() != reflect.Pointer {
		panic("the ONNX Runtime binding is not the version that go.mod pins")
	}
}

// GetInternals is what makes a run see the device's memory.
func (v *deviceValue) GetInternals() *ort.ValueInternalData { return &v.inner }

// GetShape is the tensor's own.
func (v *deviceValue) GetShape() ort.Shape {
	shape := make(ort.Shape, len(v.dims))
	for i, d := range v.dims {
		shape[i] = int64(d)
	}
	return shape
}

// ZeroContents is never called: nothing but the binding's own code could.
func (v *deviceValue) ZeroContents() { panic("a device's memory is not the process's") }

// GetONNXType says that it is a tensor.
func (v *deviceValue) GetONNXType() ort.ONNXType { return ort.ONNXTypeTensor }

// Destroy frees the tensor and its aliases. Doing so again does nothing.
func (v *deviceValue) Destroy() error {
	if v.raw == nil {
		return nil
	}
	defer v.session.device.take()()
	return v.free()
}

func (v *deviceValue) free() error {
	if v.raw == nil {
		return nil
	}
	a, err := api()
	if err != nil {
		return err
	}
	for _, alias := range v.aliases {
		err = errors.Join(err, alias.free())
	}
	C.device_release(a, v.raw)
	v.raw, v.inner, v.aliases = nil, ort.ValueInternalData{}, nil
	if v.of == nil {
		v.session.device.held.Add(-v.bytes())
		delete(v.session.tensors, v)
	}
	return errors.Join(err, v.Value.Destroy())
}

func (v *deviceValue) bytes() int64 {
	n := int64(v.t.Size())
	for _, d := range v.dims {
		n *= int64(d)
	}
	return n
}

// hold makes the value Go's after raw was set.
func (v *deviceValue) hold(a *C.OrtApi) error {
	one, err := ort.NewCustomDataTensor(ort.NewShape(1), make([]byte, v.t.Size()), ort.TensorElementDataType(v.t))
	if err != nil {
		C.device_release(a, v.raw)
		return err
	}
	v.Value = one
	*(*unsafe.Pointer)(unsafe.Pointer(&v.inner)) = v.raw // the layout is what init has checked
	return nil
}

// Device is where the session's graph runs; nil for the process's own memory.
func (s *Session) Device() *Device { return s.device }

// Tensor reserves memory on the session's device. What it holds is undefined. It lives until Destroy or the session's
// Close, whichever is first, and may be given to all sessions of that device.
func (s *Session) Tensor(t onnx.DType, dims ...int) (Tensor, error) {
	if s.device == nil {
		return Tensor{}, errors.New("the session's execution provider has no memory of its own")
	}
	v := &deviceValue{session: s, t: t, dims: dims}
	if v.bytes() <= 0 {
		return Tensor{}, fmt.Errorf("a tensor of %s of shape %v has no size", t, dims)
	}
	defer s.take()()
	if err := s.reach(); err != nil {
		return Tensor{}, err
	}
	a, err := api()
	if err != nil {
		return Tensor{}, err
	}
	allocator, err := pointer(s.allocator, "o")
	if err != nil {
		return Tensor{}, err
	}
	shape := v.GetShape()
	dimensions, axes := (*C.int64_t)(unsafe.SliceData(shape)), C.size_t(len(shape))
	if err := apiError(C.device_tensor(a, allocator, dimensions, axes, C.int(t), &v.raw)); err != nil {
		return Tensor{}, fmt.Errorf("reserve %d bytes on %s: %w", v.bytes(), s.device.Name(), err)
	}
	if err := v.hold(a); err != nil {
		return Tensor{}, err
	}
	s.tensors[v] = struct{}{}
	s.device.held.Add(v.bytes())
	return Tensor{v}, nil
}

// reach makes the session's allocator, once.
func (s *Session) reach() error {
	if s.s == nil {
		return errors.New("the session is closed")
	}
	if s.allocator != nil {
		return nil
	}
	where, err := ort.NewMemoryInfo(s.device.memory, ort.AllocatorTypeDevice, s.device.id, ort.MemTypeDefault)
	if err != nil {
		return err
	}
	defer where.Destroy()
	if s.allocator, err = s.s.CreateAllocator(where); err != nil {
		return fmt.Errorf("memory of %s: %w", s.device.Name(), err)
	}
	s.tensors = map[*deviceValue]struct{}{}
	return nil
}

// release frees what the session reserved on its device, in the one order that does not abort the process: tensors,
// then the allocator; the session is next.
func (s *Session) release() error {
	if s.allocator == nil {
		return nil
	}
	var err error
	for v := range s.tensors {
		err = errors.Join(err, v.free())
	}
	err = errors.Join(err, s.allocator.Destroy())
	s.allocator = nil
	return err
}

// Start shapes the start of a device tensor's memory, in the same type. It is freed with the tensor, or before. Kernels
// write four values at a time: a run that gives a tensor of another number of them may write past it.
func (t Tensor) Start(dims ...int) (Tensor, error) {
	of, ok := t.v.(*deviceValue)
	if !ok || of.raw == nil || of.of != nil {
		return Tensor{}, errors.New("no tensor on a device with memory of its own")
	}
	v := &deviceValue{session: of.session, t: of.t, dims: dims, of: of}
	if v.bytes() <= 0 || v.bytes() > of.bytes() {
		return Tensor{}, fmt.Errorf("a tensor of shape %v needs %d bytes, the memory has %d", dims, v.bytes(), of.bytes())
	}
	a, err := api()
	if err != nil {
		return Tensor{}, err
	}
	shape := v.GetShape()
	dimensions, axes := (*C.int64_t)(unsafe.SliceData(shape)), C.size_t(len(shape))
	bytes := C.size_t(v.bytes())
	if err := apiError(C.device_alias(a, of.raw, bytes, dimensions, axes, C.int(v.t), &v.raw)); err != nil {
		return Tensor{}, err
	}
	if err := v.hold(a); err != nil {
		return Tensor{}, err
	}
	of.aliases = append(of.aliases, v)
	return Tensor{v}, nil
}

// Copy copies src over dst, which has as many bytes. At least one of them is on a device; where both are, it is the
// same.
func Copy(dst, src Tensor) error {
	d, err := src.device()
	if err != nil {
		return err
	}
	other, err := dst.device()
	switch {
	case err != nil:
		return err
	case d == nil && other == nil:
		return errors.New("copy: neither tensor is on a device")
	case d != nil && other != nil && d != other:
		return fmt.Errorf("copy: one tensor is on %s, the other on %s", d.Name(), other.Name())
	case src.bytes() != dst.bytes():
		return fmt.Errorf("copy: %d bytes over %d", src.bytes(), dst.bytes())
	}
	on := d
	if on == nil {
		on = other
	}
	a, err := api()
	if err != nil {
		return err
	}
	from, err := pointer(src.v.GetInternals(), "ortValue")
	if err != nil {
		return err
	}
	to, err := pointer(dst.v.GetInternals(), "ortValue")
	if err != nil {
		return err
	}
	defer on.take()()
	if d == nil {
		on.toDevice.Add(src.bytes())
	}
	if other == nil {
		on.toHost.Add(src.bytes())
	}
	return apiError(C.device_copy(a, from, to))
}

// device is where a tensor lies; nil for the process's own memory.
func (t Tensor) device() (*Device, error) {
	v, ok := t.v.(*deviceValue)
	switch {
	case !ok:
		return nil, nil
	case v.raw == nil:
		return nil, errors.New("a tensor on a device is used after it was freed")
	}
	return v.session.device, nil
}

// bytes is what a tensor's values take.
func (t Tensor) bytes() int64 {
	return t.v.GetShape().FlattenedSize() * int64(onnx.DType(t.v.DataType()).Size())
}

// admit checks that a run's tensors are in the process's memory or on the session's own device (any other would be
// written to, silently, as if it were), and counts what will be copied.
func (s *Session) admit(in, out []Tensor) error {
	for _, list := range [...][]Tensor{in, out} {
		for _, t := range list {
			if d, err := t.device(); err != nil {
				return err
			} else if d != nil && d != s.device {
				return fmt.Errorf("a tensor on %s was given to a session on %s", d.Name(), s.where())
			}
		}
	}
	if s.device == nil {
		return nil
	}
	if s.crosses == nil {
		if err := s.findCrossing(len(in), len(out)); err != nil {
			return err
		}
	}
	s.device.toDevice.Add(crossing(in, s.crosses))
	s.device.toHost.Add(crossing(out, s.crosses[len(in):]))
	return nil
}

// findCrossing asks which inputs and outputs lie on the device for the graph: shapes and the like are read by the
// processor.
func (s *Session) findCrossing(in, out int) error {
	a, err := api()
	if err != nil {
		return err
	}
	session, err := pointer(s.s, "s", "ortSession")
	if err != nil {
		return err
	}
	s.crosses = bytes.Repeat([]byte{1}, in+out)
	crosses := (*C.char)(unsafe.Pointer(&s.crosses[0]))
	return apiError(C.device_crossing(a, (*C.OrtSession)(session), C.size_t(in), C.size_t(out), crosses))
}

func (s *Session) where() string {
	if s.device == nil {
		return "the processor"
	}
	return s.device.Name()
}

// crossing is what those tensors take that lie in the process's memory and not so for the graph.
func crossing(list []Tensor, crosses []byte) (n int64) {
	for i, t := range list {
		if d, _ := t.device(); d == nil && t.v != nil && crosses[i] != 0 {
			n += t.bytes()
		}
	}
	return n
}
