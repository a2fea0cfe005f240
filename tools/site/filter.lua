-- Quarto's callouts for pandoc alone: the first heading (or the title attribute) becomes the title line.
function Div(el)
  for _, class in ipairs(el.classes) do
    local kind = class:match('^callout%-(%a+)$')
    if kind then
      local title, first = el.attributes.title, el.content[1]
      if first and first.t == 'Header' then
        title = pandoc.utils.stringify(first); el.content:remove(1)
      end
      title = title or (kind:sub(1, 1):upper() .. kind:sub(2))
      el.content:insert(1, pandoc.Div(pandoc.Plain(title), pandoc.Attr('', {'callout-title'})))
      el.attr = pandoc.Attr(el.identifier, {'callout', 'callout-' .. kind}, {role = 'note'})
      return el
    end
  end
end
