package conversation

// ImportWithin is Import with a bound of what is inflated, in bytes.
var ImportWithin = importWithin
