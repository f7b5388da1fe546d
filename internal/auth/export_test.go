package auth

import "time"

// ForgetFetch has the next token with an unknown key fetch the keys, however short ago that was done.
func ForgetFetch(i *Issuer) {
	i.keys.mu.Lock()
	defer i.keys.mu.Unlock()
	i.keys.asked = time.Time{}
}
