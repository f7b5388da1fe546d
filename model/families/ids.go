package families

import "encoding/json"

// IDs is a token id or a list of them, as configurations write it; null is none.
type IDs []int32

// UnmarshalJSON takes a number, a list or null.
func (l *IDs) UnmarshalJSON(b []byte) error {
	var one int32
	if string(b) == "null" {
		return nil
	}
	if json.Unmarshal(b, &one) == nil {
		*l = IDs{one}
		return nil
	}
	return json.Unmarshal(b, (*[]int32)(l))
}
