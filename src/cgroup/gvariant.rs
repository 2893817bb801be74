//! GVariant's text form (docs.gtk.org/glib, "GVariant Text Format"), as far as properties of systemd's
//! units need it: numbers, texts, lists and tuples, with and without a type before them.

use rustbus::params::{Array, Base, Container, Param};
use rustbus::signature::Type;

/// The value that `text` is, all of it.
pub fn parse(text: &str) -> Option<Param<'static, 'static>> {
    let mut text = Text { rest: text, depth: 0 };
    text.value(None).filter(|_| text.skip_space().is_empty())
}

/// What is left of a text.
struct Text<'a> {
    rest: &'a str,
    /// In how many lists and tuples it is.
    depth: usize,
}

/// Deeper than any property: what is nested further isn't one.
const DEEPEST: usize = 32;

impl<'a> Text<'a> {
    fn skip_space(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        self.rest
    }

    fn take(&mut self, token: &str) -> bool {
        match self.skip_space().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.skip_space();
        let end =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._".contains(c)).unwrap_or(rest.len());
        self.rest = &rest[end..];
        &rest[..end]
    }

    /// A value of type `kind`, or of the type that its form says.
    fn value(&mut self, kind: Option<&str>) -> Option<Param<'static, 'static>> {
        self.depth += 1;
        let value = if self.depth > DEEPEST { None } else { self.value_within(kind) };
        self.depth -= 1;
        value
    }

    fn value_within(&mut self, kind: Option<&str>) -> Option<Param<'static, 'static>> {
        match self.skip_space().chars().next()? {
            '\'' | '"' => self.quoted(kind),
            '[' => self.array(kind.map(|kind| kind.strip_prefix('a')).unwrap_or(None)),
            '(' => self.tuple(),
            '@' => {
                self.take("@");
                let rest = self.rest;
                let end = rest.find(char::is_whitespace)?;
                self.rest = &rest[end..];
                let kind = &rest[..end];
                Type::parse_description(kind).ok().filter(|types| types.len() == 1)?;
                self.value(Some(kind)).filter(|value| value.sig() == signature(kind))
            }
            _ => self.plain(kind),
        }
    }

    fn plain(&mut self, kind: Option<&str>) -> Option<Param<'static, 'static>> {
        let word = self.word();
        let of_kind = |kind: &str, word: &str| -> Option<Base<'static>> {
            Some(match kind {
                "b" => Base::Boolean(word.parse().ok()?),
                "y" => Base::Byte(word.parse().ok()?),
                "n" => Base::Int16(word.parse().ok()?),
                "q" => Base::Uint16(word.parse().ok()?),
                "i" => Base::Int32(word.parse().ok()?),
                "u" => Base::Uint32(word.parse().ok()?),
                "x" => Base::Int64(word.parse().ok()?),
                "t" => Base::Uint64(word.parse().ok()?),
                "d" => Base::Double(word.parse::<f64>().ok()?.to_bits()),
                _ => return None,
            })
        };
        let named = match word {
            "boolean" => "b",
            "byte" => "y",
            "int16" => "n",
            "uint16" => "q",
            "int32" => "i",
            "uint32" => "u",
            "int64" => "x",
            "uint64" => "t",
            "double" => "d",
            "string" => return self.quoted(Some("s")),
            "objectpath" => return self.quoted(Some("o")),
            "true" | "false" => return of_kind(kind.unwrap_or("b"), word).map(Param::Base),
            _ => {
                let default = if word.contains(['.', 'e']) { "d" } else { "i" };
                return of_kind(kind.unwrap_or(default), word).map(Param::Base);
            }
        };
        let word = self.word();
        of_kind(named, word).map(Param::Base)
    }

    fn quoted(&mut self, kind: Option<&str>) -> Option<Param<'static, 'static>> {
        let mut characters = self.skip_space().char_indices();
        let (_, quote) = characters.next().filter(|(_, quote)| matches!(quote, '\'' | '"'))?;
        let mut text = String::new();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => text.push(match characters.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                }),
                other if other == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Some(Param::Base(match kind {
                        Some("o") => Base::ObjectPath(text),
                        None | Some("s") => Base::String(text),
                        Some(_) => return None,
                    }));
                }
                other => text.push(other),
            }
        }
        None
    }

    fn array(&mut self, element: Option<&str>) -> Option<Param<'static, 'static>> {
        self.take("[");
        let mut values: Vec<Param<'static, 'static>> = Vec::new();
        while !self.take("]") {
            if !values.is_empty() && !self.take(",") {
                return None;
            }
            let value = self.value(element)?;
            if values.first().is_some_and(|first| first.sig() != value.sig()) {
                return None;
            }
            values.push(value);
        }
        let element_sig = match (values.first(), element) {
            (Some(first), _) => first.sig(),
            (None, Some(element)) => signature(element),
            (None, None) => return None,
        };
        Some(Param::Container(Container::Array(Array { element_sig, values })))
    }

    fn tuple(&mut self) -> Option<Param<'static, 'static>> {
        self.take("(");
        let mut parts = Vec::new();
        while !self.take(")") {
            if !parts.is_empty() && !self.take(",") {
                return None;
            }
            if self.take(")") {
                break;
            }
            parts.push(self.value(None)?);
        }
        (!parts.is_empty()).then_some(Param::Container(Container::Struct(parts)))
    }
}

/// A type from its signature, which is one that was parsed before, or is a constant.
pub fn signature(signature: &str) -> Type {
    Type::parse_description(signature)
        .ok()
        .and_then(|types| types.into_iter().next())
        .unwrap_or(Type::Base(rustbus::signature::Base::String))
}
